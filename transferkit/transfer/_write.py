"""From a plan to the tensors to be written, and the only place that changes a model: all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from transferkit.errors import ArgumentError, TransferError
from transferkit.layers import split_key
from transferkit.memory import laid_out_alike, overlapping, place_of, same_memory
from transferkit.transfer._conversion import Conversion
from transferkit.transfer._entry import MOVED, Entry
from transferkit.transfer._shards import empty_like, local, own_part
from transferkit.transfer._target import Target


@dataclass(frozen=True)
class Write:
    """One tensor to be written: its key, where, and what."""

    key: str
    destination: Tensor
    value: Tensor

    def onto(self, destination: Tensor | None) -> Write:
        """Return the same write onto another tensor, if there is one."""
        return self if destination is None else replace(self, destination=destination)


class Transaction:
    """Changes that all happen or none of them does.

    Steps that can be undone come first, :meth:`write` comes last. Whatever is raised before that write is made,
    an interrupt too, undoes the steps in reverse order.

    Example:
        >>> done, weight = [], torch.zeros(2)
        >>> with Transaction() as transaction:
        ...     transaction.step(lambda: done.append(1), undo=done.clear)
        ...     transaction.write([Write("weight", weight, torch.ones(2))])
        >>> done, weight
        ([1], tensor([1., 1.]))
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []
        self._written: Callable[[], bool] = lambda: False

    def step(self, do: Callable[[], object], undo: Callable[[], object]) -> None:
        """Do something that ``undo`` takes back, also where it was broken off half-way."""
        self._undo.append(undo)
        do()

    def write(self, writes: Sequence[Write]) -> None:
        """Write all tensors in place.

        All that can fail was done before: shapes and dtypes fit, and the values are at hand. What is left is one
        call, and Python handles an interrupt only between calls; so no old values are kept, which would take
        the model's size in memory once more. Only a copy that may have to allocate, between devices and layouts,
        can still fail; those come first and keep what they overwrite.
        """
        allocating = [write for write in writes if _may_allocate(write)]
        plain = [write for write in writes if not _may_allocate(write)]
        kept = [Write(write.key, write.destination, write.destination.clone()) for write in allocating]
        old_versions = [write.destination._version for write in plain]
        # An interrupt during the last call is raised right after it. The versions tell then that it was made.
        self._written = lambda: any(
            write.destination._version != old for write, old in zip(plain, old_versions, strict=True)
        )
        self.step(lambda: _copy(allocating), undo=lambda: _copy(kept))
        _copy(plain)

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not self._written():
            for undo in reversed(self._undo):
                undo()


def _copy(writes: Sequence[Write]) -> None:
    """Copy in one call. Detached tensors are the same memory, and their writes count in the same version."""
    destinations = [write.destination.detach() for write in writes]
    if destinations:
        torch._foreach_copy_(destinations, [write.value for write in writes])


def _may_allocate(write: Write) -> bool:
    value, destination = write.value, write.destination
    if value.device == destination.device:
        return False
    return value.dtype != destination.dtype or not (value.is_contiguous() and destination.is_contiguous())


# From a plan to the tensors to be written: run the conversions and look at what they made.

# Reading a value to see that it is finite costs about half of copying it. Up to this many elements (AlexNet and
# ResNet-152 are under it) that is a hundredth of a second; larger models have their largest copied tensors taken
# on trust, and the report says which.
CHECKED_ELEMENTS = 1 << 26


def stage(
    conversions: Iterable[Conversion], written: Collection[str], tied_to: Mapping[str, str]
) -> list[Write]:
    """Run the conversions and pair every result with the tensor that it is written to.

    Args:
        conversions: One per target layer that has a source layer.
        written: Keys of the target tensors to write.
        tied_to: For keys that are the same memory as a written one: that one's key.

    Raises:
        HandlerError: A handler failed.
        TransferError: The source has no values, or gives two for one memory.
    """
    results: dict[str, Write] = {}
    for conversion in conversions:
        layer = conversion.target
        for short, value in (conversion.values() or {}).items():
            key = layer.key(short)
            if key in written or key in tied_to:
                results[key] = Write(key, *own_part(layer.tensors[short], value.detach()))
    _check_sources(results, tied_to)
    _check_destinations(results)
    _check_overlaps(list(results.values()))
    return _without_overlap([write for key, write in results.items() if key in written])


def unchecked(writes: Sequence[Write], converted: Collection[str]) -> tuple[str, ...]:
    """Look for NaN, infinity and overflow in what is to be written, parameters and buffers alike.

    Args:
        writes: What is to be written.
        converted: Keys of tensors that were converted, all of which are read.

    Returns:
        Keys of the copied tensors that were not read, being beyond ``CHECKED_ELEMENTS``.

    Raises:
        TransferError: A tensor would become NaN or overflow, or a parameter infinite. A buffer may hold the source's
            infinities: a mask of -inf is none the worse.
    """
    left, skipped, bad = CHECKED_ELEMENTS, [], []
    for write in sorted(writes, key=lambda write: (write.key not in converted, write.value.numel())):
        left -= 0 if write.key in converted else write.value.numel()
        if left < 0:
            skipped.append(write.key)
            continue
        mask = not isinstance(write.destination, nn.Parameter)
        if why := not_finite(write.value, write.destination.dtype, infinite=mask):
            bad.append(f"  {write.key}: {why}")
    if bad:
        raise TransferError(
            "these tensors would not be finite; the model is bit for bit as it was:\n"
            + "\n".join(bad)
            + "\nNext step: look at the source (a diverged training, a damaged file?), or leave the layers out: "
            "select=... & ~by_name(...); an overflow goes away with a wider dtype, such as bfloat16"
        )
    return tuple(skipped)


def not_finite(value: Tensor, dtype: torch.dtype, *, infinite: bool = False) -> str:
    """Say how a tensor is not finite in a dtype, or return an empty string.

    Args:
        value: A tensor of any dtype; whole numbers are finite.
        dtype: The dtype that it is to have.
        infinite: Whether it may hold infinities, though no NaN.

    Example:
        >>> not_finite(torch.tensor([1.0, 1e6]), torch.float16)
        '1 of 2 values overflow float16'
        >>> not_finite(torch.tensor([1.0, float("nan")]), torch.float32)
        '1 of 2 values are NaN or infinite'
    """
    if value.numel() == 0 or not (value.is_floating_point() or value.is_complex()):
        return ""
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    limit = torch.finfo(dtype).max
    narrower = limit < torch.finfo(value.dtype).max
    value = value.float() if value.itemsize == 1 else value  # torch does not add up float8
    # A sum is read from memory once and finite only if every term is; that of large terms may overflow, which
    # the slow way below then sorts out.
    if not narrower and bool(torch.isfinite(value.sum(dtype=torch.promote_types(value.dtype, torch.float32)))):
        return ""
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    broken = int((torch.isnan(wide) if infinite else ~torch.isfinite(wide)).sum())
    if broken:
        return f"{broken} of {value.numel()} values are NaN" + " or infinite" * (not infinite)
    over = int((torch.isfinite(wide) & (wide.abs() > limit)).sum()) if narrower else 0
    return f"{over} of {value.numel()} values overflow {str(dtype).removeprefix('torch.')}" if over else ""


def _check_sources(results: Mapping[str, Write], tied_to: Mapping[str, str]) -> None:
    empty = [key for key, write in results.items() if write.value.is_meta]
    if empty:
        raise TransferError(
            f"the source has shapes but no values for {', '.join(empty[:3])}{' ...' * (len(empty) > 3)} "
            "(meta device); the model is bit for bit as it was. Next step: load the source's weights first"
        )
    for key, first in tied_to.items():
        if key not in results or same_memory(results[key].value, results[first].value):
            continue
        if not _equal(results[key].value, results[first].value):
            raise TransferError(
                f"the target ties {key} to {first}, and the source has different values for them; the model is "
                f"bit for bit as it was. Next step: leave one out, select=... & ~by_name({key.rpartition('.')[0]!r})"
            )


def _check_overlaps(writes: Sequence[Write]) -> None:
    """Rehearse writes to tensors that share memory in part, and refuse those of which one would undo another."""
    for group in overlapping([write.destination for write in writes]):
        members = [writes[place] for place in group]
        rehearsed = laid_out_alike([write.destination for write in members])
        for stand_in, write in zip(rehearsed, members, strict=True):
            stand_in.copy_(write.value)
        if all(_equal(s, write.value.to(s)) for s, write in zip(rehearsed, members, strict=True)):
            continue
        _, *others = dict.fromkeys(split_key(write.key)[0] for write in members)
        leave = (
            f"leave all but one out, select=... & ~by_name({', '.join(map(repr, others))}), or "
            if others
            else ""
        )
        raise TransferError(
            f"{', '.join(write.key for write in members)} share memory in the target, and the source has different "
            f"values for what they share; the model is bit for bit as it was. Next step: {leave}give them memory of "
            "their own"
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors hold the same values, NaN where the other does included."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.itemsize == 1 and one.is_floating_point():
        one, other = one.float(), other.float()
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _check_destinations(results: Mapping[str, Write]) -> None:
    """Refuse what torch would refuse to write to, since that must not come up in the middle of it."""
    problems = []
    for key, write in results.items():
        tensor = write.destination
        if tensor.is_inference():
            problems.append(
                f"  {key}: made under torch.inference_mode, where nothing may write to it afterwards"
            )
        elif any(step == 0 and length > 1 for step, length in zip(tensor.stride(), tensor.shape, strict=True)):
            problems.append(f"  {key}: an expanded view, several elements in one place of memory")
    if problems:
        raise TransferError(
            "these tensors of the target cannot be written to; the model is bit for bit as it was:\n"
            + "\n".join(problems)
        )


def _without_overlap(writes: Sequence[Write]) -> list[Write]:
    """Take copies of values that lie in memory which is itself written to, as when layers of one model swap."""
    destinations = {place_of(write.destination) for write in writes}
    crossing = overlapping([*(write.destination for write in writes), *(write.value for write in writes)])
    entangled = {place - len(writes) for group in crossing for place in group}
    return [
        replace(write, value=write.value.clone())
        if place in entangled or place_of(write.value) in destinations - {place_of(write.destination)}
        else write
        for place, write in enumerate(writes)
    ]


# Give the parameters of a model on the meta device memory, and take it back if the transfer fails.

_Place = tuple[str, dict[str, Tensor | None], str, Tensor]  # full name, module's tensors, name there, tensor


def materialize(
    target: Target, entries: tuple[Entry, ...], device: torch.device | str | None, transaction: Transaction
) -> dict[Hashable, Tensor]:
    """Replace every meta tensor of a model by one on ``device``; tied ones by one.

    Args:
        target: The model.
        entries: The plan's entries. Every meta tensor must be moved: one that kept its own value has none.
        device: Where the tensors go.
        transaction: Takes it back if anything fails.

    Returns:
        The new tensor by the :func:`place_of` the meta tensor that it replaces; empty where there is none.

    Raises:
        ArgumentError: There are meta tensors and no device.
        TransferError: A meta tensor would be left without a value.
    """
    places = list(_meta_places(target.model))
    made: dict[Hashable, Tensor] = {}
    whole: dict[Hashable, Tensor] = {}
    if not places:
        return made
    if device is None:
        raise ArgumentError("the model is on the meta device; pass device= to say where it is to live")
    moved = {entry.key for entry in entries if entry.bucket in MOVED}
    _require_values(target, places, moved)
    _require_separate(target)

    def fill() -> None:
        for _, owner, name, old in places:
            if place_of(old) not in whole:
                whole[place_of(old)] = _empty_like(old, torch.device(device))
                made[place_of(local(old))] = local(whole[place_of(old)])
            owner[name] = whole[place_of(old)]

    def empty_again() -> None:
        for _, owner, name, old in places:
            owner[name] = old

    transaction.step(fill, undo=empty_again)
    return made


def require_real(optimizer: Optimizer) -> None:
    """Refuse an optimizer of meta parameters: it would go on holding them after they were replaced.

    Raises:
        ArgumentError: It holds one.
    """
    if any(parameter.is_meta for group in optimizer.param_groups for parameter in group["params"]):
        raise ArgumentError(
            "the optimizer holds parameters on the meta device; build the optimizer after the transfer"
        )


def _meta_places(model: nn.Module) -> Iterator[_Place]:
    """Yield every place in the model's modules that holds a meta tensor, non-persistent buffers among them."""
    for path, module in model.named_modules():
        for owner in (module._parameters, module._buffers):
            for name, tensor in owner.items():
                if tensor is not None and tensor.is_meta:
                    yield f"{path}.{name}" if path else name, owner, name, tensor


def _require_values(target: Target, places: Sequence[_Place], moved: Collection[str]) -> None:
    """Refuse to leave meta tensors without values."""
    keys = {id(tensor): layer.key(s) for layer in target.layers for s, tensor in layer.tensors.items()}
    lines = [f"  {keys[id(old)]}" for *_, old in places if id(old) in keys and keys[id(old)] not in moved]
    lines += [f"  {path} (a buffer that no file has)" for path, *_, old in places if id(old) not in keys]
    if lines:
        raise TransferError(
            "the model is on the meta device, and these tensors would be left without values:\n"
            + "\n".join(lines)
            + "\nNext step: select them and have them in the source, give a buffer that no file has its value before "
            "the transfer, or build the model on a real device"
        )


def _require_separate(target: Target) -> None:
    """Refuse meta tensors that are views of each other, which they would not be in new memory."""
    tensors = {layer.key(s): tensor for layer in target.layers for s, tensor in layer.tensors.items()}
    keys = list(tensors)
    for group in overlapping(list(tensors.values())):
        raise TransferError(
            f"{', '.join(keys[place] for place in group)} are views of one memory on the meta device, and would not "
            "be so in new memory; build the model on a real device"
        )


def _empty_like(tensor: Tensor, device: torch.device) -> Tensor:
    empty = empty_like(tensor, device)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
