"""Which target tensors may be missing in the source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from transferkit.errors import SelectionError, did_you_mean
from transferkit.layers import Layer
from transferkit.transfer.select import Predicate, as_rule, select_layers

AllowMissing = str | Sequence[str] | Predicate | None


def allowance(allow_missing: AllowMissing, layers: Sequence[Layer]) -> Callable[[Layer, str], str]:
    """Return the function that names the rule by which a layer's tensor may be missing, or an empty string.

    Args:
        allow_missing: Globs on layer names (``"classifier.*"``) or tensor keys (``"*.bias"``), or a rule.
        layers: The target's layers.

    Raises:
        SelectionError: A glob or rule matches nothing.
    """
    if allow_missing is None:
        return lambda layer, short: ""
    if isinstance(allow_missing, str):
        allow_missing = [allow_missing]
    if isinstance(allow_missing, Sequence):
        return _by_globs(allow_missing, layers)
    text = repr(as_rule(allow_missing))
    places = {layers[place].index for place in select_layers(allow_missing, layers).indices}
    return lambda layer, short: text if layer.index in places else ""


def _by_globs(globs: Sequence[str], layers: Sequence[Layer]) -> Callable[[Layer, str], str]:
    names = [name for layer in layers for name in (layer.name, *map(layer.key, layer.tensors))]
    idle = [glob for glob in globs if not any(fnmatchcase(name, glob) for name in names)]
    if idle:
        hints = [f"  {glob!r}{did_you_mean(glob.rstrip('*.'), names)}" for glob in idle]
        raise SelectionError("allow_missing matches no layer or tensor of the target:\n" + "\n".join(hints))

    def allow(layer: Layer, short: str) -> str:
        return next(
            (
                repr(glob)
                for glob in globs
                if fnmatchcase(layer.name, glob) or fnmatchcase(layer.key(short), glob)
            ),
            "",
        )

    return allow
