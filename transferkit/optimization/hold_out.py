"""A part of the training photos kept for choosing settings, with every class in both parts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from transferkit.errors import require


class HeldOut(NamedTuple):
    """Indices of the photos to train on and of those kept, ascending, int64."""

    train: Tensor
    held: Tensor


def hold_out(presence: Tensor, fraction: float = 0.2, seed: int = 0) -> HeldOut:
    """Split photos so that each class has its share in both parts.

    Photos show several classes, so they cannot be split class by class. The rarest class among those not yet dealt
    out comes first, and each of its photos goes where most of that class is still wanted; a plain random split may
    leave a rare class out of one part altogether.

    Args:
        presence: (N, K) bool or 0/1, which classes each photo shows.
        fraction: Of the photos, for the held-out part, in (0, 1).
        seed: Of the order in which photos of a class are dealt out.

    Returns:
        The two parts, about ``N * fraction`` photos and about that share of every class in the held-out one; a class
        with less than ``1 / fraction`` photos may be wholly in the other.

    Raises:
        ArgumentError: A wrong shape or fraction, or fewer than two photos.

    Example:
        >>> presence = torch.eye(2, dtype=torch.bool).repeat_interleave(torch.tensor([10, 90]), dim=0)
        >>> train, held = hold_out(presence, fraction=0.2)
        >>> presence[train].sum(dim=0), presence[held].sum(dim=0)
        (tensor([ 8, 72]), tensor([ 2, 18]))

    References:
        Sechidis et al., "On the Stratification of Multi-Label Data", ECML PKDD 2011, algorithm 1.
    """
    require(presence.ndim == 2, "presence", "(N, K)", tuple(presence.shape))
    require(len(presence) >= 2, "presence", "of two photos at least", tuple(presence.shape))
    require(0 < fraction < 1, "fraction", "in (0, 1)", fraction)
    shows = presence.cpu().bool()
    order = torch.randperm(len(shows), generator=torch.Generator().manual_seed(seed))
    shares = torch.tensor([1 - fraction, fraction], dtype=torch.float64)
    part = _deal(shows[order], shares)
    return HeldOut(order[part == 0].sort().values, order[part == 1].sort().values)


def _deal(shows: Tensor, shares: Tensor) -> Tensor:
    """Return the part of each photo, (N,) int64: the part that wants most of the photo's rarest class."""
    wanted = shares[:, None] * shows.sum(dim=0)  # (2, K), of each class
    room = shares * len(shows)  # (2,), of photos
    part = torch.full((len(shows),), -1)
    while (part < 0).any():
        left = (shows & (part < 0)[:, None]).sum(dim=0)  # (K,)
        if left.sum() == 0:
            photos, wish = part < 0, room
            chosen = int(photos.nonzero()[0])
        else:
            rarest = int(left.where(left > 0, len(shows) + 1).argmin())
            chosen, wish = int((shows[:, rarest] & (part < 0)).nonzero()[0]), wanted[:, rarest]
        best = wish == wish.max()
        goes = int(room.where(best, -torch.inf).argmax())
        part[chosen] = goes
        wanted[goes] -= shows[chosen].double()
        room[goes] -= 1
    return part
