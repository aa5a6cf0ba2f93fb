"""What a classifier says of photos: scores, and where in a photo a class is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from transferkit.errors import StateError, did_you_mean, require
from transferkit.scorer import PatchLog, score_map


@dataclass(frozen=True, eq=False)
class Predictions:
    """The scores of N photos for K classes.

    Attributes:
        ids: (N,) names of the photos.
        class_names: (K,) names of the classes, the background first.
        scores: (N, K) float64 on the cpu: sum or mean over a photo's patches of probability^exponent. They rank
            photos; they are no probabilities. ``-inf`` for a photo without a patch.
        best_probs: (N, K) float64: probability of the best patch.
        best_boxes: (N, K, 4) float64 xyxy, pixels: the best patch.
        log: Every patch's probabilities, where maps were asked for.
        photos: The data set that the photos came from, where maps were asked for.

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
        """Return photo, class and score of each photo's ``count`` highest scores, the background left out."""
        require(count >= 1, "count", "1 or more", count)
        rows = []
        for name, scores in zip(self.ids, self.scores[:, 1:], strict=True):
            best = scores.topk(min(count, len(scores)))
            found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            rows += [(name, self.class_names[1 + place], value) for place, value in found]
        return rows

    def map(self, photo: int, class_name: str) -> Tensor:
        """Return where in a photo a class is seen.

        Args:
            photo: Its place, 0-based.
            class_name: One of ``class_names``.

        Returns:
            (H, W) float64 on the cpu; see :func:`~transferkit.scorer.score_map`.

        Raises:
            StateError: Maps were not asked for.
            ArgumentError: There is no such class.
        """
        if self.log is None:
            raise StateError("patches were not kept; ask for them with predict(..., maps=True)")
        known = f"one of the class names{did_you_mean(class_name, self.class_names)}"
        require(class_name in self.class_names, "class_name", known, class_name)
        probs, boxes = self.log.patches(photo)
        size = tuple(self.photos[photo].image.shape[-2:])
        place = self.class_names.index(class_name)
        return score_map(probs[:, place : place + 1], boxes, size)[0]
