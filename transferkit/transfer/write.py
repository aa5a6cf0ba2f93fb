"""The only place that writes to a model: one call at the end, after everything that can fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Write:
    """One tensor to be written: where, and what."""

    key: str
    destination: Tensor
    value: Tensor


def write_all(writes: Sequence[Write]) -> None:
    """Write all tensors in place, in one call.

    Python handles an interrupt only between calls, and shapes, dtypes and devices were checked: the call writes
    all, or was never made. Keeping the old values, to undo a call half done, would take the model's size again.
    """
    with torch.no_grad():
        torch._foreach_copy_([write.destination for write in writes], [write.value for write in writes])
