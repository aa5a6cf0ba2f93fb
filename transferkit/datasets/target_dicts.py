"""Detection data sets as torchvision has them, ``(image, {"boxes": ..., "labels": ...})``, for the sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from transferkit.boxes import as_boxes
from transferkit.datasets.pixels import as_pixels
from transferkit.errors import DataError
from transferkit.sampler.item import AnnotatedImage


class TargetDictDataset(Dataset[AnnotatedImage]):
    """A view of a data set whose items are ``(image, target)``.

    Images may be PIL images, arrays or tensors, uint8 or floating in 0..1. Targets have ``boxes`` (n, 4) xyxy and
    ``labels`` (n,) from 1. They may have ``difficult`` or ``iscrowd``, which both count as difficult, ``truncated``,
    and ``image_id``.

    Args:
        dataset: ``len`` and items as above.
        class_names: (K,) names, ``"background"`` first; the data set's own by default, if it has any.

    Example:
        >>> target = {"boxes": torch.tensor([[5, 5, 20, 30]]), "labels": torch.tensor([1])}
        >>> TargetDictDataset([(torch.zeros(3, 40, 60), target)])[0].classes
        tensor([1])
    """

    def __init__(self, dataset: Any, class_names: Sequence[str] | None = None) -> None:
        self._dataset = dataset
        names = class_names or getattr(dataset, "class_names", None)
        if names is not None:
            self.class_names = tuple(names)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> AnnotatedImage:
        """Return one image with its objects.

        Raises:
            DataError: The item is not ``(image, target)``, or its parts contradict each other.
        """
        item = self._dataset[index]
        if not isinstance(item, Sequence) or len(item) != 2 or not isinstance(item[1], Mapping):
            found = (
                [type(part).__name__ for part in item] if isinstance(item, Sequence) else type(item).__name__
            )
            raise DataError(f"item {index} must be (image, target dict), got {found}")
        image, target = item
        missing = [name for name in ("boxes", "labels") if name not in target]
        if missing:
            raise DataError(
                f"the target of item {index} has no {' and no '.join(missing)}, only {sorted(target)}"
            )
        form = getattr(target["boxes"], "format", None)  # torchvision's BoundingBoxes have one
        if getattr(form, "name", "XYXY") != "XYXY":
            raise DataError(f"the boxes of item {index} must be XYXY, got {form}; convert them in the data set")
        boxes = as_boxes(torch.as_tensor(target["boxes"])).double().cpu()
        return AnnotatedImage(
            image=as_pixels(image),
            boxes=boxes,
            classes=_column(target["labels"], len(boxes), "labels", index).long(),
            difficult=_flags(target, ("difficult", "iscrowd"), len(boxes), index),
            truncated=_flags(target, ("truncated",), len(boxes), index),
            id=str(_plain(target.get("image_id", index))),
        )


def _column(values: Any, rows: int, name: str, index: int) -> Tensor:
    column = torch.as_tensor(values).reshape(-1).cpu()
    if len(column) != rows:
        raise DataError(f"item {index} has {rows} boxes, but {len(column)} {name}")
    return column


def _flags(target: Mapping[str, Any], names: tuple[str, ...], rows: int, index: int) -> Tensor:
    flags = torch.zeros(rows, dtype=torch.bool)
    for name in names:
        if name in target:
            flags |= _column(target[name], rows, name, index).bool()
    return flags


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
