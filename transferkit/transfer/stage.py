"""From a plan to the tensors to be written: run the conversions and look at what they made."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from transferkit.errors import TransferError
from transferkit.transfer.conversion import Conversion
from transferkit.transfer.ties import same_memory
from transferkit.transfer.write import Write

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
                results[key] = Write(key, layer.tensors[short], value.detach())
    _check_sources(results, tied_to)
    _check_destinations(results)
    return _without_overlap([write for key, write in results.items() if key in written])


def unchecked(writes: Sequence[Write], converted: Collection[str]) -> tuple[str, ...]:
    """Look for NaN, infinity and overflow in what is to be written.

    Args:
        writes: What is to be written.
        converted: Keys of tensors that were converted, all of which are read.

    Returns:
        Keys of the copied tensors that were not read, being beyond ``CHECKED_ELEMENTS``.

    Raises:
        TransferError: A parameter would become NaN or infinite. Buffers may (a mask of -inf is none the worse).
    """
    left, skipped, bad = CHECKED_ELEMENTS, [], []
    for write in sorted(writes, key=lambda write: (write.key not in converted, write.value.numel())):
        if not isinstance(write.destination, nn.Parameter) or not write.value.is_floating_point():
            continue
        left -= 0 if write.key in converted else write.value.numel()
        if left < 0:
            skipped.append(write.key)
        elif why := not_finite(write.value, write.destination.dtype):
            bad.append(f"  {write.key}: {why}")
    if bad:
        raise TransferError(
            "these parameters would not be finite; the model is bit for bit as it was:\n"
            + "\n".join(bad)
            + "\nNext step: look at the source (a diverged training, a damaged file?), or leave the layers out: "
            "select=... & ~by_name(...); an overflow goes away with a wider dtype, such as bfloat16"
        )
    return tuple(skipped)


def not_finite(value: Tensor, dtype: torch.dtype) -> str:
    """Say how a tensor is not finite in a dtype, or return an empty string.

    Example:
        >>> not_finite(torch.tensor([1.0, 1e6]), torch.float16)
        '1 of 2 values overflow float16'
        >>> not_finite(torch.tensor([1.0, float("nan")]), torch.float32)
        '1 of 2 values are NaN or infinite'
    """
    if value.numel() == 0:
        return ""
    limit = torch.finfo(dtype).max
    narrower = limit < torch.finfo(value.dtype).max
    # A sum is read from memory once and finite only if every term is; that of large terms may overflow, which
    # the slow way below then sorts out.
    if not narrower and bool(torch.isfinite(value.sum(dtype=torch.promote_types(value.dtype, torch.float32)))):
        return ""
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    broken = int((~torch.isfinite(wide)).sum())
    if broken:
        return f"{broken} of {value.numel()} values are NaN or infinite"
    over = int((wide.abs() > limit).sum()) if narrower else 0
    return f"{over} of {value.numel()} values overflow {str(dtype).removeprefix('torch.')}" if over else ""


def _check_sources(results: Mapping[str, Write], tied_to: Mapping[str, str]) -> None:
    empty = [key for key, write in results.items() if write.value.is_meta]
    if empty:
        raise TransferError(
            f"the source has shapes but no values for {', '.join(empty[:3])}{' ...' * (len(empty) > 3)} "
            "(meta device); the model is bit for bit as it was. Next step: load the source's weights first"
        )
    for key, first in tied_to.items():
        if key not in results or same_memory(results[key].value) == same_memory(results[first].value):
            continue
        if not torch.equal(results[key].value, results[first].value):
            raise TransferError(
                f"the target ties {key} to {first}, and the source has different values for them; the model is "
                f"bit for bit as it was. Next step: leave one out, select=... & ~by_name({key.rpartition('.')[0]!r})"
            )


def _check_destinations(results: Mapping[str, Write]) -> None:
    """Refuse what torch would refuse to write to, since that must not come up in the middle of it."""
    problems = []
    for key, write in results.items():
        tensor = write.destination
        if tensor.is_inference():
            problems.append(
                f"  {key}: made under torch.inference_mode, where nothing may write to it afterwards"
            )
        elif tensor.layout != torch.strided:
            problems.append(f"  {key}: of layout {tensor.layout}")
        elif any(step == 0 and length > 1 for step, length in zip(tensor.stride(), tensor.shape, strict=True)):
            problems.append(f"  {key}: an expanded view, several elements in one place of memory")
    if problems:
        raise TransferError(
            "these tensors of the target cannot be written to; the model is bit for bit as it was:\n"
            + "\n".join(problems)
        )


def _without_overlap(writes: Sequence[Write]) -> list[Write]:
    """Take copies of values that lie in memory which is itself written to, as when layers of one model swap."""
    storages = {write.destination.untyped_storage().data_ptr() for write in writes}
    return [
        Write(write.key, write.destination, write.value.clone())
        if write.value.untyped_storage().data_ptr() in storages
        and same_memory(write.value) != same_memory(write.destination)
        else write
        for write in writes
    ]
