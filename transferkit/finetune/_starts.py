"""What all ranks must have in common where training or a test begins, as short values by name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import nn

from transferkit.distributed import on_all_ranks, require_same_on_all_ranks, world_size
from transferkit.errors import ArgumentError
from transferkit.features._photos import digest_of_tensor
from transferkit.finetune.settings import LoopSettings


def require_same_start(
    work: str, model: nn.Module, sampler: Any, loop: LoopSettings, facts: Mapping[str, object]
) -> None:
    """Raise on all ranks unless they begin alike, and share the photos among them; nothing in a process of its own.

    Args:
        work: What begins.
        model: The network, whose parameters and buffers are compared.
        sampler: Compared by its state, and by the sizes and objects of its photos as far as they are told.
        loop: Compared but for the profile's folder.
        facts: What else must be the same.
    """
    require_same_on_all_ranks(
        work,
        lambda: {
            **facts,
            "loop": f"amp={loop.amp} channels_last={loop.channels_last} accumulate={loop.accumulate}",
            **_of_sampler(sampler),
            **_of_model(model),
        },
    )
    place = getattr(sampler, "place", None)
    on_all_ranks(lambda: _require_shared(place))


def _require_shared(place: tuple[int, int] | None) -> None:
    if place is not None and place[1] != world_size():
        raise ArgumentError(
            f"the sampler shares its photos among {place[1]} processes, and there are {world_size()}; leave out "
            "its rank and world_size"
        )


def _of_sampler(sampler: Any) -> dict[str, object]:
    return {**getattr(sampler, "state_dict", dict)(), **getattr(sampler, "digest_of_data", dict)()}


def _of_model(model: nn.Module) -> dict[str, object]:
    """Return a digest of each parameter and buffer; of one that is sharded over ranks only its shape."""
    found: dict[str, object] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[name] = f"{tuple(tensor.shape)} {'' if tensor.requires_grad else 'fixed '}"
        with suppress(RuntimeError, TypeError, NotImplementedError):  # one without memory of its own
            found[name] = f"{found[name]}{'' if hasattr(tensor, 'to_local') else digest_of_tensor(tensor)[:8]}"
    return found
