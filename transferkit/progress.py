"""Progress on long work: a bar on a terminal, silence elsewhere, or any wrapper of your own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

__all__ = ["Progress", "track"]

Item = TypeVar("Item")
Progress = bool | Callable[..., Iterable[Any]]
"""``True``: a bar where tqdm is installed. ``False``: silence. A callable: wraps an iterable as ``tqdm`` does."""


def track(
    items: Iterable[Item],
    progress: Progress,
    *,
    total: int | None = None,
    description: str = "",
    unit: str = "it",
) -> Iterable[Item]:
    """Wrap ``items`` so that iterating over them shows progress.

    Args:
        items: Anything iterable.
        progress: ``False``: ``items`` as they are. ``True``: a tqdm bar on standard error if tqdm is installed
            and that is a terminal, else ``items`` as they are. A callable: called like ``tqdm.tqdm`` with
            ``(items, total=, desc=, unit=)``.
        total: Number of items, where ``len`` does not tell.
        description: Label of the bar.
        unit: Name of one item.
    """
    if progress is False:
        return items
    if progress is True:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return items
        bar: Iterable[Item] = tqdm(items, total=total, desc=description, unit=unit, disable=None)
        return bar
    return progress(items, total=total, desc=description, unit=unit)
