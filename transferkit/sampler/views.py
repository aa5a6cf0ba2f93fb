"""Look through torch's views of data sets, ``Subset`` and ``ConcatDataset``, at what is known without decoding."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from torch.utils.data import ConcatDataset, Subset


def teller_of(dataset: Any, index: int, name: str) -> tuple[Any, int] | None:
    """Return the data set with an attribute ``name`` that holds an image, and the image's place in it.

    Args:
        dataset: A data set, or a view of one, or a view of views.
        index: The image's place in ``dataset``.
        name: Such as ``"image_size"`` or ``"ids"``.

    Returns:
        ``None`` where neither ``dataset`` nor what it views has the attribute.

    Example:
        >>> class Named(list):
        ...     ids = ("a", "b", "c")
        >>> view = Subset(ConcatDataset([Named([0, 1, 2]), Named([3, 4, 5])]), [5, 0])
        >>> data, place = teller_of(view, 0, "ids")
        >>> data.ids[place]
        'c'
    """
    while not hasattr(dataset, name):
        if isinstance(dataset, Subset):
            dataset, index = dataset.dataset, int(dataset.indices[index])
        elif isinstance(dataset, ConcatDataset):
            part = bisect_right(dataset.cumulative_sizes, index)
            index -= dataset.cumulative_sizes[part - 1] if part else 0
            dataset = dataset.datasets[part]
        else:
            return None
    return dataset, index


def tellers_of(dataset: Any, name: str) -> list[tuple[Any, int]] | None:
    """Return :func:`teller_of` of every image; ``None`` if any has none."""
    found = [teller_of(dataset, index, name) for index in range(len(dataset))]
    tellers = [teller for teller in found if teller is not None]
    return tellers if len(tellers) == len(found) else None
