"""From the class probabilities of patches to a score per image and class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from transferkit.annotated import as_tensor
from transferkit.distributed import gather_objects, in_process_group
from transferkit.errors import ArgumentError, StateError, require
from transferkit.scorer._tally import Tally, combine, gather_tallies, tally_batch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


BACKGROUND = "background"  # the class that no evaluation counts

# An average of float32 probabilities may exceed 1 by a rounding.
_SLACK = 1e-6

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def checked_batch(
    probs: Tensor, image_index: Tensor, boxes: Tensor | None, num_images: int, num_classes: int, *, values: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the batch as tensors, or raise ``ArgumentError`` unless it fits a scorer of N images and K classes.

    Args:
        probs: (B, K) probabilities.
        image_index: (B,) integers.
        boxes: (B, 4) or ``None``.
        num_images: N.
        num_classes: K.
        values: Whether to look at the values too, which waits for their device.
    """
    probs, image_index = as_tensor("probs", probs), as_tensor("image_index", image_index)
    boxes = None if boxes is None else as_tensor("boxes", boxes)
    problems = []
    if probs.ndim != 2 or probs.shape[1] != num_classes or not probs.is_floating_point():
        problems.append(f"probs must be (B, {num_classes}) floats, got {tuple(probs.shape)} {probs.dtype}")
    if image_index.shape != probs.shape[:1] or image_index.dtype not in _INTEGERS:
        found = f"{tuple(image_index.shape)} {image_index.dtype}"
        problems.append(f"image_index must be one integer per patch, (B,), got {found}")
    if boxes is not None and boxes.shape != (*probs.shape[:1], 4):
        problems.append(f"boxes must be one xyxy box per patch, (B, 4), got {tuple(boxes.shape)}")
    if not problems and values:
        problems = [*_wrong_images(image_index, num_images), *_wrong_probs(probs, image_index)]
        problems += [] if boxes is None else _wrong_boxes(boxes)
    if problems:
        raise ArgumentError("; ".join(problems))
    return probs, image_index, boxes


def _wrong_images(image_index: Tensor, num_images: int) -> list[str]:
    wrong = (image_index < 0) | (image_index >= num_images)
    if not wrong.any():
        return []
    row = int(wrong.nonzero()[0])
    return [f"image_index must lie in 0..{num_images - 1}, got {int(image_index[row])} at row {row}"]


def _wrong_probs(probs: Tensor, image_index: Tensor) -> list[str]:
    wrong = ~((probs >= 0) & (probs <= 1 + _SLACK))  # also true for NaN
    if not wrong.any():
        return []
    row, column = (int(i) for i in wrong.nonzero()[0])
    value = float(probs[row, column])
    step = "the network gives NaN" if value != value else "give probabilities (softmax), not logits"
    place = f"row {row}, class {column}, image {int(image_index[row])}"
    return [f"probs must lie in 0..1, got {value:g} at {place} ({int(wrong.sum())} such values): {step}"]


def _wrong_boxes(boxes: Tensor) -> list[str]:
    wrong = ~(boxes.isfinite().all(dim=1) & (boxes[:, :2] <= boxes[:, 2:]).all(dim=1))
    if not wrong.any():
        return []
    row = int(wrong.nonzero()[0])
    found = [round(value, 3) for value in boxes[row].tolist()]
    return [f"boxes must be finite, xmin <= xmax and ymin <= ymax, got {found} at row {row}"]


Reduction = Literal["sum", "mean"]


@runtime_checkable
class Scorer(Protocol):
    """What an evaluation loop needs of a scorer; any object with these two methods serves."""

    def add_batch(self, probs: Tensor, image_index: Tensor, boxes: Tensor | None = None) -> None:
        """Take in the probabilities (B, K) of patches of the images (B,)."""

    def compute(self) -> Tensor:
        """Return the (N, K) scores of all images; higher means more surely present."""


class ImageScorer:
    """Sum or average ``p ** exponent`` over the patches of each image.

    Patches come in any order, any number per image, any batch size; images may be interleaved. The sums are
    kept in float64 relative to their largest term (see :mod:`transferkit.scorer._tally`), so nothing underflows.

    Args:
        num_images: N.
        num_classes: K, background included.
        exponent: Positive. 1 is the plain sum or mean; the larger, the more the best patch alone decides;
            ``math.inf`` scores an image by its best patch.
        reduction: ``"sum"`` or ``"mean"`` over the patches of an image.
        device: Where the sums are kept; ``None`` is cpu. Batches are moved there.
        validate: Whether the values of each batch are checked. The check waits for the device that holds them.
            Unchecked, a NaN or a negative value makes the image's score NaN, which :func:`evaluate` refuses.
        keep_boxes: Keep the box of the best patch, where boxes are given: 32 bytes per image and class, twice what
            the scores take.

    Raises:
        ArgumentError: An argument is out of its range.

    Example:
        >>> scorer = ImageScorer(num_images=2, num_classes=3, exponent=2)
        >>> scorer.add_batch(torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([0, 0]))
        >>> scorer.compute()
        tensor([[0.2500, 1.2500, 0.0000],
                [  -inf,   -inf,   -inf]], dtype=torch.float64)

    References:
        Oquab et al., Learning and Transferring Mid-Level Image Representations using CNNs, CVPR 2014.
    """

    def __init__(
        self,
        num_images: int,
        num_classes: int,
        exponent: float = 5,
        reduction: Reduction = "sum",
        device: torch.device | str | None = None,
        validate: bool = True,
        keep_boxes: bool = True,
    ) -> None:
        require(num_images >= 1, "num_images", "at least 1", num_images)
        require(num_classes >= 1, "num_classes", "at least 1", num_classes)
        require(exponent > 0, "exponent", "positive, or math.inf for the maximum", exponent)
        require(reduction in ("sum", "mean"), "reduction", "'sum' or 'mean'", reduction)
        self.device = torch.device(device or "cpu")
        require(
            self.device.type != "mps", "device", "one with float64 (keep the scorer on cpu)", str(self.device)
        )
        self.num_images = num_images
        self.num_classes = num_classes
        self.exponent = float(exponent)
        self.reduction: Reduction = reduction
        self.validate = validate
        self.keep_boxes = keep_boxes
        self._tally = Tally.empty(num_images, num_classes, self.device)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"ImageScorer({settings}; {int(self._tally.count.sum()):,} patches seen)"

    @property
    def counts(self) -> Tensor:
        """The number of patches of each image, (N,) int64."""
        return self._tally.count.clone()

    @property
    def best_boxes(self) -> Tensor:
        """The patch with the highest probability per image and class, (N, K, 4) float64 xyxy in pixels.

        NaN where no boxes were given. Of several at the same height, the first by (xmin, ymin, xmax, ymax).

        Raises:
            StateError: They were not to be kept.
        """
        if not self.keep_boxes:
            raise StateError(
                "the boxes of the best patches were not kept; make the scorer with keep_boxes=True"
            )
        return self._tally.boxes().clone()

    @property
    def best_probs(self) -> Tensor:
        """The highest probability per image and class, (N, K) float64."""
        return self._tally.peak.clone()

    @torch.no_grad()
    def add_batch(self, probs: Tensor, image_index: Tensor, boxes: Tensor | None = None) -> None:
        """Take in a batch of patches.

        Args:
            probs: (B, K) probabilities of each patch, any floating dtype and device; an array of NumPy too.
            image_index: (B,) integers in 0..N-1: the image of each patch.
            boxes: (B, 4) xyxy in pixels of the image: where the patches lie; kept for the best patch only.

        Raises:
            ArgumentError: Shapes that do not fit, an image outside 0..N-1, a probability outside 0..1 or NaN, a
                box that is inside out or not finite.
        """
        size = (self.num_images, self.num_classes)
        probs, image_index, boxes = checked_batch(probs, image_index, boxes, *size, values=self.validate)
        if len(probs) == 0:
            return
        images, slot = image_index.long().unique(return_inverse=True)  # type: ignore[no-untyped-call]
        images, slot = images.to(self.device), slot.to(self.device)
        probs = probs.to(self.device).double()  # moved first: not every device they come from has float64
        probs = probs.masked_fill(probs < 0, torch.nan)  # no power of it is a score
        boxes = None if boxes is None else boxes.to(self.device).double()
        batch = tally_batch(probs, slot, len(images), boxes, self.exponent, self.keep_boxes)
        if batch.box is not None and self._tally.box is None:
            self._tally = replace(self._tally, box=self._tally.boxes())
        self._tally.write_rows(images, combine(self._tally.rows(images), batch, self.exponent))

    def compute(self, log: bool = False) -> Tensor:
        """Return the score of every image for every class.

        An image without any patch scores ``-inf``: it ranks last, like one missing from a devkit result file.

        Args:
            log: Return the natural logarithm of the scores. It ranks images where the scores themselves are
                below 1e-308.

        Returns:
            (N, K) float64 on the scorer's device.
        """
        tally = self._tally
        exponent, total = self.exponent, tally.total
        if math.isinf(exponent):  # the maximum itself, not how often it occurs
            exponent, total = 1.0, torch.ones_like(tally.total)
        elif self.reduction == "mean":
            total = total / tally.count[:, None]
        score = exponent * tally.peak.log() + total.log() if log else tally.peak.pow(exponent) * total
        return score.where((tally.count > 0)[:, None], -math.inf)

    def merge(self, other: ImageScorer) -> None:
        """Add what another scorer has seen of the same images.

        Raises:
            ArgumentError: ``other`` has other settings.
        """
        if other.settings() != self.settings():
            raise ArgumentError(
                f"cannot merge a scorer with {other.settings()} into one with {self.settings()}"
            )
        self._tally = combine(self._tally, self._taken(vars(other._tally)), self.exponent)

    def across_ranks(self, group: ProcessGroup | None = None) -> ImageScorer:
        """Return a scorer with what all ranks of a distributed run have seen; the same on every rank.

        Every rank must call it. In a process of its own it returns a copy. This scorer goes on counting for its
        rank alone.

        Raises:
            ArgumentError: The ranks' scorers have different settings.
        """
        whole = copy(self)
        if in_process_group():
            tallies = gather_tallies(self._tally, self.settings(), group)
            whole._tally = reduce(partial(combine, exponent=self.exponent), tallies)
        else:
            whole._tally = self._tally.rows(torch.arange(self.num_images, device=self.device))
        return whole

    def settings(self) -> dict[str, int | float | str]:
        """Return what two scorers must have in common to be merged."""
        return {
            "num_images": self.num_images,
            "num_classes": self.num_classes,
            "exponent": self.exponent,
            "reduction": self.reduction,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return settings and sums as plain values and tensors, fit for ``torch.save`` and ``weights_only``."""
        return {
            "settings": self.settings(),
            **{name: None if value is None else value.clone() for name, value in vars(self._tally).items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state saved by a scorer of the same settings.

        Raises:
            StateError: The state is incomplete or was saved with other settings; this scorer is unchanged.
        """
        names = list(vars(self._tally))
        missing = [name for name in ["settings", *names] if name not in state]
        if missing:
            raise StateError(f"the state of a scorer must hold {', '.join(missing)}; it holds {sorted(state)}")
        if state["settings"] != self.settings():
            raise StateError(f"the state was saved with {state['settings']}, this scorer has {self.settings()}")
        self._tally = self._taken({name: state[name] for name in names})

    def _taken(self, tensors: Mapping[str, Tensor | None]) -> Tally:
        """Return a copy of another tally's tensors on this device, with the boxes only if they are to be kept."""
        kept = {name: value for name, value in tensors.items() if name != "box" or self.keep_boxes}
        here = {name: value.to(self.device, copy=True) for name, value in kept.items() if value is not None}
        return Tally(**here)


# The probabilities of every patch, kept for maps and for any exponent afterwards.


class PatchLog:
    """Keep all patches of a test run in memory, in float32 on the cpu: 4 K + 24 bytes per patch.

    It takes the batches that an :class:`ImageScorer` takes and gives the same scores, for one exponent after
    another; the maps of an image come from its patches.

    Args:
        num_images: N.
        num_classes: K, background included.
        exponent: What :meth:`compute` uses unless told otherwise.
        reduction: What :meth:`compute` uses unless told otherwise.

    Example:
        >>> log = PatchLog(num_images=1, num_classes=2)
        >>> boxes = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]])
        >>> log.add_batch(torch.tensor([[0.5, 0.5], [0.0, 1.0]]), torch.tensor([0, 0]), boxes)
        >>> [log.compute(exponent).tolist() for exponent in (1, 2)]
        [[[0.5, 1.5]], [[0.25, 1.25]]]
    """

    def __init__(
        self, num_images: int, num_classes: int, exponent: float = 5, reduction: Reduction = "sum"
    ) -> None:
        ImageScorer(num_images, num_classes, exponent, reduction)  # refuses what is out of range
        self.num_images = num_images
        self.num_classes = num_classes
        self.exponent = exponent
        self.reduction: Reduction = reduction
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def add_batch(self, probs: Tensor, image_index: Tensor, boxes: Tensor | None = None) -> None:
        """Take in a batch of patches; see :meth:`ImageScorer.add_batch`. Here the boxes are needed.

        Raises:
            ArgumentError: No boxes, or a batch that an :class:`ImageScorer` would refuse.
        """
        if boxes is None:
            raise ArgumentError("boxes must be given: maps are drawn from where the patches lie")
        batch = checked_batch(probs, image_index, boxes, self.num_images, self.num_classes, values=True)
        columns = [column.detach().cpu() for column in batch if column is not None]
        self._batches.append((columns[0].float(), columns[1].long(), columns[2].float()))

    def compute(
        self, exponent: float | None = None, reduction: Reduction | None = None, *, log: bool = False
    ) -> Tensor:
        """Return the (N, K) float64 scores that an :class:`ImageScorer` with these settings gives.

        Args:
            exponent: Unless that of this log.
            reduction: What :meth:`compute` uses unless told otherwise.
            log: Return their logarithm; see :meth:`ImageScorer.compute`.
        """
        return self._filled(exponent, reduction, keep_boxes=False).compute(log)

    def scorer(self, exponent: float | None = None, reduction: Reduction | None = None) -> ImageScorer:
        """Return an :class:`ImageScorer` that has seen all patches; arguments as for :meth:`compute`."""
        return self._filled(exponent, reduction, keep_boxes=True)

    def _filled(self, exponent: float | None, reduction: Reduction | None, *, keep_boxes: bool) -> ImageScorer:
        exponent = self.exponent if exponent is None else exponent
        reduction = self.reduction if reduction is None else reduction
        size = (self.num_images, self.num_classes)
        scorer = ImageScorer(*size, exponent, reduction, validate=False, keep_boxes=keep_boxes)
        for probs, image_index, boxes in self._batches:
            scorer.add_batch(probs, image_index, boxes)
        return scorer

    def patches(self, image: int) -> tuple[Tensor, Tensor]:
        """Return the (P, K) probabilities and (P, 4) boxes of one image, in the order they came."""
        self._sort()
        probs, image_index, boxes = self._batches[0]
        first, end = torch.searchsorted(image_index, torch.tensor([image, image + 1])).tolist()
        return probs[first:end], boxes[first:end]

    def across_ranks(self, group: ProcessGroup | None = None) -> PatchLog:
        """Return a log of what all ranks of a distributed run have seen; see :meth:`ImageScorer.across_ranks`."""
        whole = PatchLog(self.num_images, self.num_classes, self.exponent, self.reduction)
        whole._batches = [batch for batches in gather_objects(self._batches, group) for batch in batches]
        return whole

    def _sort(self) -> None:
        """Make one batch of all, image after image."""
        if len(self._batches) == 1 and not (self._batches[0][1].diff() < 0).any():
            return
        empty = (torch.zeros(0, self.num_classes), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
        probs, image_index, boxes = (
            torch.cat(parts) for parts in zip(*(self._batches or [empty]), strict=True)
        )
        image_index, order = image_index.sort(stable=True)
        self._batches = [(probs[order], image_index, boxes[order])]
