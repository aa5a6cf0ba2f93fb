"""What memory tensors lie in, whether two are one under several names or lie over each other, and what one held."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_map_only


class DeferredTensor(Tensor):
    """A tensor whose values are made when they are first used; until then it has a shape and a dtype alone.

    Any operation sees the values; ``clone()`` returns an ordinary tensor.

    Example:
        >>> deferred = DeferredTensor((2,), torch.float32, lambda: torch.ones(2))
        >>> deferred.shape, deferred + 1
        (torch.Size([2]), tensor([2., 2.]))
    """

    make: Callable[[], Tensor]

    def __new__(cls, shape: Sequence[int], dtype: torch.dtype, make: Callable[[], Tensor]) -> DeferredTensor:  # noqa: D102
        made: DeferredTensor = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)
        made.make = make
        return made

    @cached_property
    def value(self) -> Tensor:
        """The ordinary tensor, kept from the first use on."""
        return self.make()

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, options = getattr(function, "__name__", ""), kwargs or {}
        name = function.__self__.__name__ if name == "__get__" else name
        if name == "to" and "meta" in map(str, (*args[1:], *options.values())):
            return torch.empty(args[0].shape, dtype=args[0].dtype, device="meta")
        if name == "detach":  # it is part of no graph
            return args[0]
        if name in _NEEDS_NO_VALUES:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **options)
        return cls.__torch_dispatch__(function, types, args, options)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(DeferredTensor, lambda tensor: tensor.value, (args, kwargs or {}))
        return function(*args, **kwargs)


_NEEDS_NO_VALUES = frozenset(
    [
        *("shape", "size", "ndim", "dim", "ndimension", "numel", "nelement", "__len__", "nbytes"),
        *("dtype", "itemsize", "element_size", "is_complex", "is_floating_point", "is_signed", "is_quantized"),
        *("device", "is_cpu", "is_cuda", "is_meta", "requires_grad", "is_leaf", "grad", "to", "cpu"),
        *("layout", "is_sparse", "is_nested", "stride", "storage_offset", "is_contiguous", "contiguous"),
    ]
)


def not_plain(tensor: Tensor) -> str:
    """Say what a tensor is where it is no plain block of numbers in memory, or return an empty string.

    Example:
        >>> not_plain(torch.eye(2)), not_plain(torch.eye(2).to_sparse())
        ('', 'sparse_coo tensor')
    """
    if tensor.is_quantized:
        return f"quantized {_name(tensor.dtype)} tensor"
    if tensor.is_nested:
        return "nested tensor"
    if tensor.layout != torch.strided:
        return f"{_name(tensor.layout)} tensor"
    return type(tensor).__name__ if _wraps_others(tensor) else ""


class _Extent(NamedTuple):
    """The bytes from a tensor's first element to its last: in which memory, from where, and to where."""

    memory: Hashable
    start: int
    stop: int


def place_of(tensor: Tensor) -> Hashable:
    """Return a key that two tensors share if they are the same elements in the same memory.

    No element is read, so a tensor mapped from a file stays unread. A tensor without memory of its own (empty,
    sparse, a wrapper around others) is identified by the object itself.
    """
    extent = _extent(tensor)
    return id(tensor) if extent is None else (extent, tensor.shape, tensor.stride(), tensor.dtype)


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are the same elements in the same memory."""
    return place_of(one) == place_of(other)


def shared_groups(tensors: Iterable[tuple[str, Tensor]]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of two or more keys that name the same tensor, in order of first appearance.

    Example:
        >>> weight = torch.zeros(3, 2)
        >>> shared_groups([("embed.weight", weight), ("norm.weight", torch.ones(2)), ("head.weight", weight)])
        (('embed.weight', 'head.weight'),)
    """
    groups: dict[Hashable, list[str]] = {}
    for key, tensor in tensors:
        groups.setdefault(place_of(tensor), []).append(key)
    return tuple(tuple(keys) for keys in groups.values() if len(keys) > 1)


def overlapping(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Return the groups of places whose tensors lie in one stretch of memory without being the same elements.

    A transposed view and its base do, and so do overlapping slices. Interleaved slices do too, though no element is
    in both.

    Example:
        >>> base = torch.zeros(6, 2)
        >>> overlapping([base, torch.zeros(2), base[:2], base[4:]])
        [[0, 2, 3]]
        >>> overlapping([base[:3], base[3:], base[3:]])
        []
    """
    extents = {place: extent for place, tensor in enumerate(tensors) if (extent := _extent(tensor))}
    groups: list[list[int]] = []
    reached: _Extent | None = None
    for place, extent in sorted(extents.items(), key=lambda item: (str(item[1].memory), *item[1][1:])):
        if reached and extent.memory == reached.memory and extent.start < reached.stop:
            groups[-1].append(place)
            reached = reached._replace(stop=max(reached.stop, extent.stop))
        else:
            groups.append([place])
            reached = extent
    return [sorted(group) for group in groups if len({place_of(tensors[place]) for place in group}) > 1]


def laid_out_alike(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return zeros that lie in new memory as tensors of one overlapping group lie in theirs.

    Example:
        >>> base = torch.ones(2, 2)
        >>> whole, row = laid_out_alike([base, base[1]])
        >>> _ = row.fill_(5)
        >>> whole
        tensor([[0., 0.],
                [5., 5.]])
    """
    extents = [extent for tensor in tensors if (extent := _extent(tensor))]
    first, last = min(extent.start for extent in extents), max(extent.stop for extent in extents)
    block = torch.zeros(last - first, dtype=torch.uint8)
    return [
        block[extent.start - first : extent.stop - first]
        .view(tensor.dtype)
        .as_strided(tensor.shape, tensor.stride())
        for tensor, extent in zip(tensors, extents, strict=True)
    ]


def move(tensors: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """Return the tensors on a device; those that shared memory share it there."""
    return _each_once(tensors, lambda tensor: tensor.to(device))


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the tensors; those that shared memory share it again."""
    return _each_once(tensors, Tensor.clone)


def _each_once(tensors: Mapping[str, Tensor], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    changed: dict[Hashable, Tensor] = {}
    for tensor in tensors.values():
        if place_of(tensor) not in changed:
            changed[place_of(tensor)] = change(tensor)
    return {key: changed[place_of(tensor)] for key, tensor in tensors.items()}


def _wraps_others(tensor: Tensor) -> bool:
    """Tell whether a tensor's numbers are those of other tensors, as a DTensor's, or nowhere, as a fake one's."""
    return is_traceable_wrapper_subclass(tensor) or type(tensor).__name__ == "FakeTensor"


def _extent(tensor: Tensor) -> _Extent | None:
    if tensor.numel() == 0 or isinstance(tensor, DeferredTensor) or not_plain(tensor):
        return None
    spanned = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    length = spanned * tensor.itemsize
    if tensor.is_meta:  # no address, but one storage object for all views of it
        start = int(tensor.storage_offset()) * tensor.itemsize
        return _Extent(("meta", tensor.untyped_storage()._cdata), start, start + length)
    return _Extent(tensor.device, tensor.data_ptr(), tensor.data_ptr() + length)


def _name(torch_constant: object) -> str:
    return str(torch_constant).removeprefix("torch.")


# What a tensor held, in a few hundred bytes: enough to tell later whether it changed, and by how much.


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
