"""One source layer on its way into one target layer: tried on shapes to plan it, run on values to apply it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from transferkit.errors import HandlerError
from transferkit.layers import Layer
from transferkit.transfer.handlers import Handler


@dataclass(frozen=True)
class Preview:
    """What a conversion would make.

    Attributes:
        values: Tensors for the target by short name, of which only shape and dtype count.
        kept: Names of those that are the source's own, unchanged.
    """

    values: Mapping[str, Tensor]
    kept: frozenset[str]


@dataclass(frozen=True)
class Conversion:
    """A source layer, a target layer, and what converts the one into the other.

    Attributes:
        source: The source layer.
        target: The target layer.
        handler: Converts; ``None`` to take the source's tensors as they are.
        name: What the handler is called.
    """

    source: Layer
    target: Layer
    handler: Handler | None = None
    name: str = ""

    def values(self) -> Mapping[str, Tensor] | None:
        """Return the tensors for the target, by short name, or ``None`` where the handler does not apply.

        Raises:
            HandlerError: The handler raised, or made what the target does not have or what does not fit it.
        """
        if self.handler is None:
            return {
                short: tensor for short, tensor in self.source.tensors.items() if short in self.target.tensors
            }
        try:
            with torch.no_grad():
                made = self.handler(self.source, self.target)
        except Exception as error:
            raise HandlerError(f"{self._place} raised {type(error).__name__}: {error}") from error
        if made is None:
            return None
        problems = list(self._problems(made))
        if problems:
            raise HandlerError(f"{self._place} returned {', '.join(problems)}")
        return {short: value for short, value in made.items() if short in self.target.tensors}

    def _problems(self, made: object) -> Iterator[str]:
        """Say what is wrong with a handler's result. A source tensor left as it is may fit or not, as in a copy."""
        if not isinstance(made, Mapping):
            yield f"a {type(made).__name__}; it must return tensors by name, or None where it does not apply"
            return
        shapes = self.target.shapes
        for short, value in made.items():
            if not isinstance(value, Tensor):
                yield f"{value!r} for {short}"
            elif value is not self.source.tensors.get(short) and shapes.get(short) != tuple(value.shape):
                wanted = list(shapes[short]) if short in shapes else "none"
                yield f"{short} {list(value.shape)} where the target has {wanted}"

    def preview(self) -> Preview | None:
        """Return what the conversion would make, from shapes alone; ``None`` where it does not apply."""
        source, target = _shapes_only(self.source), _shapes_only(self.target)
        values = replace(self, source=source, target=target).values()
        if values is None:
            return None
        kept = {short for short, value in values.items() if value is source.tensors.get(short)}
        return Preview(values, frozenset(kept))

    @property
    def _place(self) -> str:
        return f"handler {self.name} from {self.source.name!r} to {self.target.name!r}"


def _shapes_only(layer: Layer) -> Layer:
    return replace(
        layer, tensors={short: tensor.detach().to("meta") for short, tensor in layer.tensors.items()}
    )
