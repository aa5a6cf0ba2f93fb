"""Predictions for photos: scores of classes, and maps of where in a photo a class is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from transferkit.errors import ArgumentError, StateError, did_you_mean, require
from transferkit.scorer import PatchLog, score_map


@dataclass(frozen=True, eq=False)
class Predictions:
    """Scores of N photos for K classes.

    Attributes:
        ids: (N,) ids of the photos.
        class_names: (K,) class names, the background first.
        scores: (N, K) float64 on the CPU, the sum or mean over a photo's patches of probability^exponent. Scores rank
            photos; they are not probabilities. ``-inf`` for a photo without patches.
        best_probs: (N, K) float64, highest probability of a patch.
        best_boxes: (N, K, 4) float64 xyxy, pixels, box of that patch.
        log: Probabilities of all patches, kept with ``predict(..., maps=True)``.
        photos: The data set of the photos, kept with ``predict(..., maps=True)``.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.0, 0.9, 0.1]], dtype=torch.float64)
        >>> boxes = torch.zeros(1, 3, 4, dtype=torch.float64)
        >>> Predictions(("a.jpg",), ("background", "cat", "dog"), scores, scores, boxes).top(1)
        [('a.jpg', 'cat', 0.9)]
    """

    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    scores: Tensor
    best_probs: Tensor
    best_boxes: Tensor
    log: PatchLog | None = None
    photos: Any = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        maps = ", with maps" if self.log is not None else ""
        return f"Predictions({len(self)} photos, {len(self.class_names) - 1} classes{maps})"

    def top(self, count: int = 1) -> list[tuple[str, str, float]]:
        """Return the ``count`` best classes of each photo, without the background.

        Returns:
            Rows of photo id, class name and score; photo by photo, the highest score first.
        """
        require(count >= 1, "count", "1 or more", count)
        rows = []
        for name, scores in zip(self.ids, self.scores[:, 1:], strict=True):
            best = scores.topk(min(count, len(scores)))
            found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            rows += [(name, self.class_names[1 + place], value) for place, value in found]
        return rows

    def map(self, photo: int, class_name: str) -> Tensor:
        """Return the map of where in a photo a class is seen.

        Args:
            photo: Index of the photo, 0-based.
            class_name: A name in ``class_names``.

        Returns:
            (H, W) float64 on the CPU; see :func:`~transferkit.scorer.score_map`.

        Raises:
            StateError: The predictions were made without ``maps=True``.
            ArgumentError: There is no such class.
        """
        if self.log is None:
            raise StateError("the patches that maps are made of were not kept; use predict(..., maps=True)")
        if class_name not in self.class_names:
            raise ArgumentError(
                f"class_name must be one of {', '.join(self.class_names)}, got {class_name!r}"
                f"{did_you_mean(class_name, self.class_names)}"
            )
        probs, boxes = self.log.patches(photo)
        size = tuple(self.photos[photo].image.shape[-2:])
        place = self.class_names.index(class_name)
        return score_map(probs[:, place : place + 1], boxes, size)[0]
