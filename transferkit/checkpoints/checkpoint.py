"""A checkpoint: the layers of a file, a state dict or a live model, in definition order; and how to read one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import IO, Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from transferkit.checkpoints import (  # noqa: F401  importing a reader registers its format
    _archives,
    _bundles,
    _caffe,
    _containers,
    _dcp,
    _flax,
    _keras,
    _onnx,
    _pickle_files,
    _safetensors,
    _torch_files,
)
from transferkit.checkpoints._optimizers import ParameterState, states_of
from transferkit.checkpoints._state_dicts import bare_layers, contents_of
from transferkit.checkpoints.registry import Contents, ReadOptions, find_format, format_named, why_not_read
from transferkit.errors import (
    CheckpointError,
    LayerNotFoundError,
    TransferKitError,
    did_you_mean,
    listed,
    require,
)
from transferkit.layers import Layer, layers_from_tensors
from transferkit.memory import copied, move, shared_groups

_CHUNK = 1 << 22  # bytes hashed at a time


class Checkpoint(Sequence[Layer]):
    """An ordered, read-only sequence of layers.

    The tensors of a file are mapped from it: names, shapes and dtypes cost nothing, and a tensor's bytes are
    read when it is first used. The file must therefore stay as it is for as long as its checkpoint is in use.

    Attributes:
        layers: The layers in definition order.
        format: What was read: ``"torch"``, ``"safetensors"``, ``"neon"``, ``"state dict"``, ``"model"``, ...
        source: The file or folder, or ``None`` where there is none.
        notes: Decisions of the reader that a user should know, one sentence each.
        metadata: Plain values found beside the tensors (``"epoch"``, ``"neon_version"``).
        files: The files that were read; more than one for shards.
        model: The live model whose layers these are, or ``None``.

    Example:
        >>> state_dict = {"conv.weight": torch.zeros(8, 3, 3, 3), "fc.weight": torch.zeros(2, 8)}
        >>> checkpoint = Checkpoint.from_state_dict(state_dict)
        >>> checkpoint.names
        ('conv', 'fc')
        >>> checkpoint["fc"]
        Layer(1, 'fc', linear: weight [2, 8])
        >>> checkpoint["fc1"]
        Traceback (most recent call last):
        transferkit.errors.LayerNotFoundError: no layer 'fc1' in the state dict; did you mean 'fc'?
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        format: str,
        source: Path | None = None,
        notes: Sequence[str] = (),
        metadata: Mapping[str, Any] = MappingProxyType({}),
        files: Sequence[Path] = (),
        model: nn.Module | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.format = format
        self.source = source
        self.notes = tuple(notes)
        self.metadata = metadata
        self.files = tuple(files)
        self.model = model
        self._by_name = {layer.name: layer for layer in self.layers}

    @classmethod
    def from_contents(cls, contents: Contents, *, format: str, source: Path | None = None) -> Checkpoint:
        """Group what a reader found into layers."""
        layers = layers_from_tensors(
            contents.tensors,
            contents.states,
            contents.raw_index,
            paths=contents.paths,
            ordered=contents.ordered,
            kinds=contents.kinds,
            attributes=contents.attributes,
            layout=contents.layout,
        )
        return cls(
            layers,
            format=format,
            source=source,
            notes=contents.notes,
            metadata=contents.metadata,
            files=contents.files or ([source] if source else []),
        )

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Any],
        optimizer_state: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
    ) -> Checkpoint:
        """Make a checkpoint of a state dict, or of a dict that holds one under a usual key.

        Args:
            state_dict: Tensors by full key; shared, not copied.
            optimizer_state: ``optimizer.state_dict()``, attached to the layers by the names of its parameters, or
                else by their order where that can be done in one way; a note says where it cannot.
            key: Dotted path of the state dict within ``state_dict``; ``None`` finds it.

        Raises:
            CheckpointError: There are no tensors in it, or more than one set of them.
        """
        contents = contents_of(state_dict, key=key, optimizer_state=optimizer_state)
        return cls.from_contents(contents, format="state dict")

    @classmethod
    def from_model(cls, model: nn.Module, optimizer: Optimizer | None = None) -> Checkpoint:
        """Make a checkpoint of a live model's own parameters and persistent buffers, without copying them.

        Args:
            model: Any module.
            optimizer: An optimizer of its parameters; its state is attached to their layers. One that keeps states
                of its own around another optimizer's is left out with a note.
        """
        layers, set_aside = bare_layers(model)
        states, notes = ({}, []) if optimizer is None else states_of(optimizer)
        if set_aside:
            notes = [*notes, f"set aside the prefixes of wrappers: {listed(list(set_aside))}"]
        own = [
            replace(layer, states={s: states[id(t)] for s, t in layer.tensors.items() if id(t) in states})
            for layer in layers
        ]
        return cls(own, format="model", notes=notes, model=model)

    @property
    def names(self) -> tuple[str, ...]:
        """The layers' names in definition order."""
        return tuple(self._by_name)

    @cached_property
    def shared(self) -> tuple[tuple[str, ...], ...]:
        """Groups of state-dict keys whose tensors are one and the same memory (tied weights)."""
        return shared_groups(self.state_dict().items())

    @cached_property
    def sha256(self) -> str | None:
        """Hexadecimal SHA-256 of the file; of the shards' digests and names for several; ``None`` without a file.

        Computed on first use, since it reads everything, in steps of 4 MiB.
        """
        if len(self.files) < 2:
            return _digest(self.files[0]) if self.files else None
        listing = "".join(f"{_digest(path)}  {path.name}\n" for path in sorted(self.files))
        return hashlib.sha256(listing.encode()).hexdigest()

    def to(self, device: torch.device | str | None) -> Checkpoint:
        """Return the checkpoint with every tensor on a device; the same object where ``device`` is ``None``."""
        if device is None:
            return self
        moved = move(self.state_dict(), device)
        layers = self._with(moved, lambda state: state.to(device))
        return Checkpoint(
            layers,
            format=self.format,
            source=self.source,
            notes=self.notes,
            metadata=self.metadata,
            files=self.files,
        )

    def _in_memory(self) -> Checkpoint:
        """Return the checkpoint with copies of its tensors, which need no file any more."""
        layers = self._with(copied(self.state_dict()), ParameterState.copied)
        return Checkpoint(layers, format=self.format, notes=self.notes, metadata=self.metadata)

    def _with(
        self, tensors: Mapping[str, Tensor], change: Callable[[ParameterState], ParameterState]
    ) -> list[Layer]:
        """Return the layers with other tensors by full key, and with their optimizer states changed."""
        return [
            replace(
                layer,
                tensors={short: tensors[layer.key(short)] for short in layer.tensors},
                states={short: change(ParameterState.of(state)) for short, state in layer.states.items()},
            )
            for layer in self.layers
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """Return all tensors by full key, ``"features.0.weight"``."""
        return {layer.key(short): tensor for layer in self.layers for short, tensor in layer.tensors.items()}

    @overload
    def __getitem__(self, which: int | str) -> Layer: ...
    @overload
    def __getitem__(self, which: slice) -> tuple[Layer, ...]: ...
    def __getitem__(self, which: int | str | slice) -> Layer | tuple[Layer, ...]:
        if isinstance(which, slice):
            return self.layers[which]
        if isinstance(which, str):
            if which in self._by_name:
                return self._by_name[which]
            raise LayerNotFoundError(f"no layer {which!r} in {self._where}{did_you_mean(which, self.names)}")
        if -len(self) <= which < len(self):
            return self.layers[which]
        raise LayerNotFoundError(f"no layer {which} in {self._where}; it has layers 0 to {len(self) - 1}")

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __contains__(self, which: object) -> bool:
        return which in self._by_name if isinstance(which, str) else which in self.layers

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the place of a layer, as ``list.index`` does."""
        return self.layers.index(value, start, len(self) if stop is None else stop)

    def __repr__(self) -> str:
        elements = sum(layer.elements for layer in self.layers)
        return f"Checkpoint({self._where}, {self.format}: {len(self)} layers, {elements:,} elements)"

    @property
    def _where(self) -> str:
        if self.source is not None:
            return str(self.source)
        return f"the {self.format}" if self.format in ("state dict", "model", "layers") else "an open file"


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_checkpoint(
    source: str | PathLike[str] | IO[bytes] | Mapping[str, Any] | nn.Module | Checkpoint,
    device: torch.device | str | None = None,
    *,
    key: str | None = None,
    format: str | None = None,
    trusted: bool = False,
    fold_dropout: bool = True,
) -> Checkpoint:
    """Read a checkpoint. No code from the file runs.

    Args:
        source: A file, a folder with shards, a file opened in binary mode or a ``BytesIO`` (read into memory), a
            state dict (or a dict around one), or a live module. Nothing is fetched: of a URL the error says how.
        device: Where the tensors go. A file's are mapped into the cpu's memory and read when first used; any
            other device receives them all now. ``None`` leaves those of a dict or module where they are.
        key: Dotted path of the state dict where a file holds more than one, such as ``"model_ema"``.
        format: Name of the format, where content and suffix do not tell it.
        trusted: Let a torch file run any code it contains, with your permissions. Only for a file you made yourself.
        fold_dropout: For neon files: scale the weights after a dropout layer by its ``keep``, so that a torch
            model computes the same function. neon scales activations when testing, torch when training.

    Raises:
        CheckpointError: The file is damaged, refused as unsafe, of no known format, or without tensors.

    Example:
        >>> checkpoint = read_checkpoint({"epoch": 3, "model": {"module.fc.weight": torch.zeros(2, 8)}})
        >>> checkpoint.names, checkpoint.metadata
        (('fc',), {'epoch': 3})
    """
    if isinstance(source, Checkpoint):
        return source.to(device)
    if isinstance(source, nn.Module):
        return Checkpoint.from_model(source).to(device)
    if isinstance(source, Mapping):
        return Checkpoint.from_state_dict(source, key=key).to(device)
    options = ReadOptions(key=key, trusted=trusted, fold_dropout=fold_dropout)
    if not isinstance(source, str | PathLike):
        require(hasattr(source, "read"), "source", "a path, an open file, a dict or a module", source)
        return _read_open_file(source, options, format).to(device)
    if "://" in str(source):
        raise CheckpointError(
            f"{source} is a URL, and nothing is fetched here. Next step: "
            f"read_checkpoint(torch.hub.load_state_dict_from_url({str(source)!r}, weights_only=True))"
        )
    return _read_path(Path(source), options, format).to(device)


def _read_open_file(file: IO[bytes], options: ReadOptions, format: str | None) -> Checkpoint:
    """Read what is left of an open file, by way of a file of its own that is gone afterwards."""
    name = getattr(file, "name", "")
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"open{Path(name).suffix if isinstance(name, str) else ''}"
        content = file.read()
        require(isinstance(content, bytes), "source", "opened in binary mode", file)
        path.write_bytes(content)
        try:
            found = _read_path(path, options, format)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(path), str(name or "the open file"))) from error
        return found._in_memory()


def _require_readable(path: Path) -> None:
    if not path.exists():
        index = path.with_name(f"{path.name}.index")
        hint = f"; TensorFlow's checkpoint of this name is read by {index.name!r}" if index.is_file() else ""
        raise CheckpointError(f"no such file or folder{hint}")
    if not path.is_file() and not path.is_dir():  # opening a pipe waits until someone writes
        raise CheckpointError(
            "refused: a pipe, socket or device; copy what comes out of it to a file, and read that"
        )


def _read_path(path: Path, options: ReadOptions, format: str | None) -> Checkpoint:
    try:
        _require_readable(path)
        form = format_named(format) if format else find_format(path)
        contents = form.read(path, options)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {why_not_read(error)}") from error.__cause__
    except (TransferKitError, KeyboardInterrupt, Warning):  # a warning, where its user made it an error
        raise
    except Exception as error:  # a damaged file breaks a parser in ways that no one lists
        raise CheckpointError(f"{path}: {why_not_read(error)}") from error
    return Checkpoint.from_contents(contents, format=contents.format or form.name, source=path)
