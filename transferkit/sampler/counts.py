"""How many patches each image will give, found with as little work as possible."""

from __future__ import annotations

from collections.abc import Sequence

from transferkit.sampler.choose import PatchChooser


def patch_counts(chooser: PatchChooser) -> Sequence[int]:
    """Return the number of patches that each image gives, (N,).

    No image is touched where the balance always gives the same number; none is decoded where the grid and the
    data set's ``image_size`` tell it; and otherwise every image is decoded and labelled once.
    """
    size = getattr(chooser.balance, "size", None)
    images = len(chooser.dataset)
    if size is not None and chooser.grid is not None:
        least, most = size(1, chooser.count), size(2**62, chooser.count)
        if least is not None and least == most:
            return [least] * images
        if least is not None and chooser.proposals is None and hasattr(chooser.dataset, "image_size"):
            sizes = map(chooser.dataset.image_size, range(images))
            return [size(chooser.grid.count((height, width)), chooser.count) for height, width in sizes]
    return [len(chooser[0, image].labels) for image in range(images)]
