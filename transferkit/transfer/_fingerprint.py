"""What a tensor held, in a few hundred bytes: enough to tell later whether it changed, and by how much."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan

import torch
from torch import Tensor

_KEPT = 32
"""How many values are kept to tell by how much; the digest is of all."""


@dataclass(frozen=True)
class Fingerprint:
    """What a tensor held.

    Attributes:
        what: Class, dtype and shape, as text.
        digest: SHA-256 of all values in logical order; ``None`` where there are none to read (the meta device).
        sample: Up to 32 of the values, evenly spaced.
        elements: Number of values.
    """

    what: str
    digest: bytes | None
    sample: array[float]
    elements: int

    @classmethod
    def of(cls, tensor: Tensor) -> Fingerprint:
        """Read a tensor."""
        kind = "" if type(tensor) in (Tensor, torch.nn.Parameter) else f"{type(tensor).__name__} "
        what = f"{kind}{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        digest, sample = None, array("d")
        try:
            parts = [_flat(part) for part in _parts(tensor.detach())]
            digest = _digest(parts)
            sample = _sample(parts[0])
        except (RuntimeError, NotImplementedError, TypeError):
            pass  # a tensor without memory, or of a kind that cannot be read as bytes: it is said when it matters
        return cls(what, digest, sample, tensor.numel())

    def difference(self, now: Fingerprint) -> str:
        """Return how a later fingerprint of the same tensor differs, empty where it does not."""
        if self.what != now.what:
            return f"was {self.what} and is {now.what}"
        if self.digest is None or now.digest is None:
            return f"{self.what} cannot be compared: its values could not be read"
        if self.digest == now.digest:
            return ""
        pairs = zip(self.sample, now.sample, strict=True)
        most = max((abs(a - b) for a, b in pairs if a != b and not (isnan(a) and isnan(b))), default=0.0)
        if self.elements <= _KEPT:
            return f"{self.what} changed by up to {most:.3g}"
        return f"{self.what} changed, by up to {most:.3g} in {_KEPT} of {self.elements:,} values"


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the plain tensors that a tensor consists of."""
    if hasattr(tensor, "__tensor_flatten__"):  # the protocol of tensor subclasses: DTensor, torchao
        for name in tensor.__tensor_flatten__()[0]:
            yield from _parts(getattr(tensor, name))
    elif tensor.layout is torch.sparse_coo:
        yield from (tensor._values(), tensor._indices())
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (tensor.values(), tensor.crow_indices(), tensor.col_indices())
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (tensor.values(), tensor.ccol_indices(), tensor.row_indices())
    elif tensor.is_quantized:
        yield from (tensor.dequantize(), tensor.int_repr())
    else:
        yield tensor


def _flat(tensor: Tensor) -> Tensor:
    plain = tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return torch.view_as_real(plain).reshape(-1) if plain.is_complex() else plain


def _digest(parts: list[Tensor]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.view(torch.uint8).numpy().data)
    return digest.digest()


def _sample(flat: Tensor) -> array[float]:
    step = max(1, len(flat) // _KEPT)
    return array("d", flat[::step][:_KEPT].double().tolist())
