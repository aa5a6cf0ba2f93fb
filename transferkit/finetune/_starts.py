"""What all ranks must have in common where training or a test begins, as short values by name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import nn

from transferkit.distributed import place_among_ranks, require_same_on_all_ranks, world_size
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

    def found() -> dict[str, object]:
        _require_shared(sampler)
        return {
            "loop": f"amp={loop.amp} channels_last={loop.channels_last} accumulate={loop.accumulate}",
            **_of_sampler(sampler),
            **facts,  # a run's epoch decides, not its sampler's
            **_of_model(model),
        }

    require_same_on_all_ranks(work, found)


def _require_shared(sampler: Any) -> None:
    place = getattr(sampler, "place", None)
    if place is not None and place != place_among_ranks():
        raise ArgumentError(
            f"the sampler serves rank {place[0]} of {place[1]}, and this is rank {place_among_ranks()[0]} of "
            f"{world_size()}; leave out its rank and world_size"
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
