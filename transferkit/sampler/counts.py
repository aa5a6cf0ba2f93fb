"""How many patches each image will give, found with as little work as possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from transferkit.sampler.choose import BadImage, PatchChooser


def patch_counts(chooser: PatchChooser, num_workers: int = 0) -> Sequence[int]:
    """Return the number of patches that each image gives, (N,); 0 for an image that cannot be used.

    No image is touched where the balance always chooses the same number. None is looked at where the number
    follows from how many patches there are, and the source knows that. Otherwise every image is decoded and
    labelled once, by ``num_workers`` processes.
    """
    size = getattr(chooser.balance, "size", None)
    images = len(chooser.dataset)
    if size is not None and chooser.source.always_some:
        least, most = size(1, chooser.count), size(2**62, chooser.count)
        if least is not None and least == most:
            return [least] * images
        available = chooser.source.available(chooser.dataset)
        if least is not None and available is not None:
            return [size(patches, chooser.count) for patches in available]
    counted = DataLoader(
        _Counted(chooser), batch_size=None, num_workers=num_workers, generator=torch.Generator()
    )
    return [int(count) for count in counted]


@dataclass(frozen=True, eq=False)
class _Counted(Dataset[int]):
    chooser: PatchChooser

    def __len__(self) -> int:
        return len(self.chooser.dataset)

    def __getitem__(self, index: int) -> int:
        chosen = self.chooser[0, index]
        return 0 if isinstance(chosen, BadImage) else len(chosen.labels)
