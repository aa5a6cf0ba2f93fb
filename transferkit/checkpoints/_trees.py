"""What a saved object holds, as a tree of dicts with tensors and plain values at its leaves.

Lists are dicts of their numbers, objects dicts of their attributes, and a pickled module is its state dict. Whoever
saved the object chose how deep the weights lie in it; here each is reachable by one dotted name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from transferkit.checkpoints._inert import MAX_VALUES, Global, Inert
from transferkit.errors import CheckpointError
from transferkit.layers import kind_of_class

Tree = dict[str, Any]
_MAX_DEPTH = 100
_COST_OF_MODULE = 20  # values that take as long; a module in two places is read in both
_MOST_TEXT = 1 << 27  # characters of all names together
_LONGEST_LIST = 100  # plain values that are kept as one
_MODULE_PARTS = ("_parameters", "_buffers", "_modules")
_SCRIPT = "__torch__."
_MANGLED = "___torch_mangle_"


class Module(Tree):
    """A pickled module's state dict: its parameters and buffers by dotted name.

    Attributes:
        name: Its class, as the file names it.
        kinds: Kinds of its layers, by name, where the class is one of torch's.
        attributes: What the file says of each module that has tensors, and of the whole under ``""``.
        loose: Tensors that are neither parameters nor persistent buffers, by name.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.kinds: dict[str, str] = {}
        self.attributes: dict[str, dict[str, Any]] = {}
        self.loose: Tree = {}


class OptimizerState(Tree):
    """What an optimizer saved: no weights, and its numbers and groups mean nothing as names."""


def tree_of(saved: object) -> Any:
    """Return a saved object as a tree, or the one leaf that it is.

    Raises:
        CheckpointError: Two of its parts have one name, or it is nested beyond reason.
    """
    return _Builder(saved).node(saved, None, 0)


def walk(tree: Any, *, optimizers: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield every part of a tree with its dotted name, in order, a dict before what is in it.

    Raises:
        CheckpointError: All the names together are longer than those of any model.
    """
    text = 0
    pending = [("", tree)]
    while pending:
        name, value = pending.pop()
        yield name, value
        left = isinstance(value, OptimizerState) and not optimizers
        if isinstance(value, dict) and not left:
            text += sum(map(len, value)) + len(name) * len(value)
            if text > _MOST_TEXT:
                raise CheckpointError(
                    f"refused: the names of its parts have more than {_MOST_TEXT:,} characters"
                )
            pending += [(f"{name}.{key}" if name else key, item) for key, item in reversed(value.items())]


def leaves(tree: Any, *, optimizers: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a tree with their dotted names, in order."""
    return (part for part in walk(tree, optimizers=optimizers) if not isinstance(part[1], dict))


def is_tensor(value: object) -> bool:
    """Whether a leaf is a tensor, be it one that cannot be read."""
    return isinstance(value, Tensor) or (isinstance(value, Inert) and bool(value.unreadable))


def is_plain(value: object) -> bool:
    """Whether a leaf is a number, a text or a flag, or a short list of them."""
    if isinstance(value, list | tuple):
        return len(value) <= _LONGEST_LIST and _is_row(value)
    return isinstance(value, str | int | float)


def _is_row(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str | int | float | None) for item in value)


def as_tensor(value: object) -> object:
    """Return an array of numbers as a tensor, over the same memory if it can be; anything else as it is."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufc":
        return value
    plain = np.ascontiguousarray(value, value.dtype.newbyteorder("=")).reshape(value.shape)
    return torch.from_numpy(plain if plain.flags.writeable else plain.copy())


class _Builder:
    """Makes a tree; an object of the file that several others hold stands where the way to it is shortest."""

    def __init__(self, saved: object) -> None:
        self.owners = _owners(saved)
        self.seen: set[int] = set()
        self.above: set[int] = set()
        self.count = 0

    def _step(self, depth: int, cost: int = 1) -> None:
        self.count += cost
        if depth > _MAX_DEPTH or self.count > MAX_VALUES:
            raise CheckpointError(
                f"refused: more than {MAX_VALUES:,} values, or nested more than {_MAX_DEPTH} deep, as a module that "
                "contains itself"
            )

    def node(self, value: Any, owner: object, depth: int) -> Any:
        """Return one value as a tree or leaf."""
        self._step(depth)
        if isinstance(value, nn.Module):
            value = value.state_dict()
        if isinstance(value, Inert):
            return self._object(value, owner, depth)
        if isinstance(value, Global | torch.dtype | torch.device):
            return str(value)
        if id(value) in self.above:
            return None
        if not isinstance(value, Mapping | list | tuple) or _is_row(value):
            return as_tensor(value)
        self.above.add(id(value))
        found = self._branch(value, depth)
        self.above.discard(id(value))
        return found

    def _object(self, value: Inert, owner: object, depth: int) -> Any:
        if value.unreadable:
            return value
        if id(value) in self.seen or self.owners.get(id(value), id(owner)) != id(owner):
            return None
        self.seen.add(id(value))
        if not _is_module(value):
            return self.node(value.content, value, depth + 1)
        found = Module(_class_name(value.name))
        self._module(value, "", found, depth)
        held = {id(tensor) for tensor in found.values()}  # lists of a module's own parameters are nothing new
        found.loose = {name: leaf for name, leaf in found.loose.items() if id(leaf) not in held}
        return found

    def _branch(self, value: Any, depth: int) -> Tree:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        found: Tree = OptimizerState() if depth and _is_optimizer(value) else {}
        for key, item in items:
            put(found, key if isinstance(key, str) else _label(key), self.node(item, value, depth + 1))
        return found

    def _module(self, value: Inert, prefix: str, found: Module, depth: int) -> None:
        """Add a module's own tensors, then those of the modules in it, as ``state_dict`` orders them."""
        self._step(depth, _COST_OF_MODULE)
        self.seen.add(id(value))
        own, modules, rest, scratch = _parts(value)
        found.loose |= {f"{prefix}{key}": item for key, item in scratch.items()}
        for key, tensor in own.items():
            put(found, f"{prefix}{key}", as_tensor(tensor))
        self._describe(value, prefix[:-1], own, rest, found)
        for key, child in modules.items():
            if isinstance(child, Inert) and _is_module(child):
                self._module(child, f"{prefix}{key}.", found, depth + 1)
            elif child is not None:
                for name, leaf in leaves({f"{prefix}{key}": self.node(child, modules, depth + 1)}):
                    put(found, name, leaf)
        for key, item in rest.items():
            if not is_plain(item):
                loose = leaves({f"{prefix}{key}": self.node(item, rest, depth + 1)})
                found.loose |= {name: leaf for name, leaf in loose if is_tensor(leaf)}

    def _describe(self, value: Inert, name: str, own: Tree, rest: Tree, found: Module) -> None:
        """Keep what the file says of a module beside its tensors."""
        if own or not name:
            kind = kind_of_class(_class_name(value.name))
            if kind and own:
                found.kinds[name] = kind
            said = {key: item for key, item in rest.items() if not key.startswith("_") and is_plain(item)}
            found.attributes[name] = {"class": _class_name(value.name), **said}


def _owners(root: object) -> dict[int, int]:
    """Return by object what holds it on the shortest way from the root."""
    owners = {id(root): id(None)}
    seen: set[int] = set()
    pending = deque([root])
    while pending:
        value = pending.popleft()
        for child in _inside(value):
            if isinstance(child, Inert):
                owners.setdefault(id(child), id(value))
            if id(child) not in seen and isinstance(child, Inert | Mapping | list | tuple):
                seen.add(id(child))
                pending.append(child)
    return owners


def _inside(value: Any) -> Any:
    if isinstance(value, Inert):
        return [value.content]
    return (
        list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else []
    )


def put(found: Tree, name: str, value: Any) -> None:
    """Add a part under a name that is not taken."""
    if name in found:
        raise CheckpointError(f"refused: two of its parts are called {name!r}")
    found[name] = value


def _label(key: object) -> str:
    return ".".join(map(_label, key)) if isinstance(key, tuple) else str(key)


def _is_optimizer(value: object) -> bool:
    return isinstance(value, Mapping) and "state" in value and "param_groups" in value


# Modules: objects with a module's three dicts, or of a class that TorchScript made.


def _is_module(value: Inert) -> bool:
    if not isinstance(value.content, dict):
        return False
    return value.name.startswith(_SCRIPT) or all(isinstance(value.content.get(p), dict) for p in _MODULE_PARTS)


def _class_name(name: str) -> str:
    parts = name.removeprefix(_SCRIPT).split(".")
    return ".".join(part for part in parts if not part.startswith(_MANGLED))


def _parts(value: Inert) -> tuple[Tree, Tree, Tree, Tree]:
    """Return a module's own tensors, the modules in it, the rest, and buffers that are not saved."""
    content: Tree = {_label(key): item for key, item in value.content.items()}
    if value.name.startswith(_SCRIPT):
        rest = {key: item for key, item in content.items() if item is None or is_plain(item)}
        own = {key: item for key, item in content.items() if is_tensor(item)}
        return own, {key: item for key, item in content.items() if key not in {**rest, **own}}, rest, {}
    parameters, buffers, modules = (content[part] for part in _MODULE_PARTS)
    listed = content.get("_non_persistent_buffers_set") or ()
    scratch = {key: item for key, item in buffers.items() if item is not None and key in listed}
    own = {_label(key): item for key, item in parameters.items() if item is not None}
    for key, item in buffers.items():
        if item is not None and key not in scratch:
            put(own, _label(key), item)
    rest = {key: item for key, item in content.items() if key not in _MODULE_PARTS}
    return own, modules, rest, scratch
