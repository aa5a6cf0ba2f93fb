"""What is known of each image's patches so far, in a form that any two parts of a stream, or ranks, can be joined.

The score of an image for a class is ``sum over patches of p ** exponent``. Summed as it stands, a p of 1e-12 is
lost beside larger ones in float32, and to the power 50 it is zero in float64 too. A tally therefore keeps the
largest p and the sum relative to it::

    peak  = max p
    total = sum (p / peak) ** exponent          between 1 and the number of patches
    score = peak ** exponent * total

Nothing underflows on the way, whatever the exponent, and infinity is no special case: the total then counts
the patches at the peak. Tallies form a commutative monoid under :func:`combine`: a batch, a worker and a rank
are joined by the same formula, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from transferkit.distributed import gather_objects
from transferkit.errors import ArgumentError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Tally:
    """The evidence for N images and K classes.

    Attributes:
        peak: (N, K) float64, the largest probability; 0 before the first patch.
        total: (N, K) float64, the sum of ``(p / peak) ** exponent``.
        count: (N,) int64, the number of patches.
        box: (N, K, 4) float64 xyxy in pixels of the image, the patch at the peak; NaN where no box was given, and
            ``None`` where none ever was: it is twice as large as all the rest.
    """

    peak: Tensor
    total: Tensor
    count: Tensor
    box: Tensor | None = None

    @staticmethod
    def empty(num_images: int, num_classes: int, device: torch.device | str | None = None) -> Tally:
        """Return the tally of no patches, the neutral element of :func:`combine`."""
        shape = (num_images, num_classes)
        return Tally(
            peak=torch.zeros(shape, dtype=torch.float64, device=device),
            total=torch.zeros(shape, dtype=torch.float64, device=device),
            count=torch.zeros(num_images, dtype=torch.int64, device=device),
        )

    def boxes(self) -> Tensor:
        """Return the boxes, (N, K, 4), NaN where there is none."""
        return self.peak.new_full((*self.peak.shape, 4), torch.nan) if self.box is None else self.box

    def rows(self, index: Tensor) -> Tally:
        """Return the tally of some images."""
        box = None if self.box is None else self.box[index]
        return Tally(self.peak[index], self.total[index], self.count[index], box)

    def write_rows(self, index: Tensor, rows: Tally) -> None:
        """Put ``rows`` in the place of the images ``index``, in place; ``index`` holds no image twice."""
        self.peak[index] = rows.peak
        self.total[index] = rows.total
        self.count[index] = rows.count
        if self.box is not None:
            self.box[index] = rows.boxes()


def combine(a: Tally, b: Tally, exponent: float) -> Tally:
    """Return the tally of the patches of ``a`` and of ``b`` together.

    Where both have the same peak, the box that comes first in the order of (xmin, ymin, xmax, ymax) is kept, so
    that the outcome does not depend on which was seen first.
    """
    peak = torch.maximum(a.peak, b.peak)
    total_a = a.total * _relative_power(a.peak, peak, exponent)
    total_b = b.total * _relative_power(b.peak, peak, exponent)
    whole = Tally(peak, total_a + total_b, a.count + b.count)
    if a.box is None and b.box is None:
        return whole
    box_a, box_b = a.boxes(), b.boxes()
    b_wins = (b.peak > a.peak) | ((b.peak == a.peak) & _comes_first(box_b, box_a))  # (N, K)
    return replace(whole, box=torch.where(b_wins[..., None], box_b, box_a))


def tally_batch(
    probs: Tensor, slot: Tensor, num_slots: int, boxes: Tensor | None, exponent: float, keep_boxes: bool = True
) -> Tally:
    """Return the tally of one batch of patches.

    Args:
        probs: (B, K) float64 probabilities.
        slot: (B,) int64, which of ``num_slots`` images each patch belongs to.
        num_slots: Number of images in the batch.
        boxes: (B, 4) float64 xyxy, pixels; ``None`` where unknown. Sums are made in their order, kept or not.
        exponent: Positive; may be infinite.
        keep_boxes: Whether the tally has boxes.
    """
    if boxes is not None:
        order = _lexicographic_order(boxes)
        probs, slot, boxes = probs[order], slot[order], boxes[order]
    spread = slot[:, None].expand_as(probs)  # (B, K)

    nothing = Tally.empty(num_slots, probs.shape[1], probs.device)
    peak = nothing.peak.scatter_reduce(0, spread, probs, "amax")
    total = nothing.total.index_add(0, slot, _relative_power(probs, peak[slot], exponent))
    count = nothing.count.index_add(0, slot, torch.ones_like(slot))
    if boxes is None or not keep_boxes:
        return Tally(peak, total, count)

    position = torch.arange(len(slot), device=slot.device)[:, None].expand_as(probs)
    last = torch.full_like(nothing.peak, len(slot) - 1, dtype=torch.int64)
    first_at_peak = last.scatter_reduce(0, spread, position.where(probs == peak[slot], len(slot) - 1), "amin")
    return Tally(peak, total, count, boxes[first_at_peak])


def _relative_power(probs: Tensor, peak: Tensor, exponent: float) -> Tensor:
    """Return ``(p / peak) ** exponent``, and 0 where the peak is 0."""
    return torch.where(peak > 0, probs / peak, 0).pow(exponent)


def _lexicographic_order(boxes: Tensor) -> Tensor:
    """Return the (B,) order of (B, 4) boxes by xmin, then ymin, xmax, ymax; those with NaN last."""
    order = torch.arange(len(boxes), device=boxes.device)
    for axis in (3, 2, 1, 0):
        order = order[torch.argsort(boxes[order, axis], stable=True)]
    return order


def _comes_first(a: Tensor, b: Tensor) -> Tensor:
    """Return where (..., 4) box ``a`` precedes ``b`` in lexicographic order; any box precedes one of NaN."""
    first = torch.zeros(a.shape[:-1], dtype=torch.bool, device=a.device)
    for axis in (3, 2, 1, 0):
        first = (a[..., axis] < b[..., axis]) | ((a[..., axis] == b[..., axis]) & first)
    return first | (b.isnan().any(dim=-1) & ~a.isnan().any(dim=-1))


# Tallies of all ranks of a distributed run, brought together.


def gather_tallies(tally: Tally, settings: dict[str, Any], group: ProcessGroup | None = None) -> list[Tally]:
    """Return the tallies of all ranks of ``group``, in the order of the ranks, on every one of them.

    Args:
        tally: This rank's.
        settings: What must be the same on all ranks.
        group: ``None`` for all processes.

    Raises:
        ArgumentError: A rank has other settings; raised on every rank.
    """
    told = gather_objects((settings, tally.box is not None), group)
    world, all_settings = len(told), [each for each, _ in told]
    if any(other != all_settings[0] for other in all_settings):
        listing = "; ".join(f"rank {rank}: {other}" for rank, other in enumerate(all_settings))
        raise ArgumentError(f"scorers must have the same settings on all ranks, got {listing}")
    on_gpu = distributed.get_backend(group) == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    gathered: dict[str, list[torch.Tensor]] = {}
    known = replace(tally, box=tally.boxes() if any(has_boxes for _, has_boxes in told) else None)
    for name, tensor in vars(known).items():
        if tensor is None:
            continue
        mine = tensor.to(device).contiguous()
        everyones = [torch.empty_like(mine) for _ in range(world)]
        distributed.all_gather(everyones, mine, group=group)
        gathered[name] = [other.to(tensor.device) for other in everyones]
    return [Tally(**{name: tensors[rank] for name, tensors in gathered.items()}) for rank in range(world)]
