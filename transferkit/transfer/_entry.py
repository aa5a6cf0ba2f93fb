"""The lines of a transfer's account: what becomes of one tensor, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from transferkit.checkpoints import Checkpoint
from transferkit.errors import harmless

BUCKETS = ("copied", "adapted", "cast", "tied", "skipped", "mismatched", "missing", "unexpected")

WRITTEN = ("copied", "adapted", "cast")

MOVED = (*WRITTEN, "tied")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Side:
    """A tensor on one side of the transfer: its state-dict key, shape and dtype."""

    key: str
    shape: Shape
    dtype: str

    @classmethod
    def of(cls, key: str, tensor: Tensor) -> Side:
        """Describe a tensor."""
        return cls(key, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    @property
    def shape_text(self) -> str:
        """The shape as messages show it: ``"[64, 3, 11, 11]"``."""
        return str(list(self.shape))

    def __str__(self) -> str:
        return f"{harmless(self.key)} {self.shape_text}"


@dataclass(frozen=True)
class Entry:
    """What happens to one target tensor, or to one source tensor that no target tensor uses.

    Attributes:
        bucket: ``copied``, ``adapted`` (by a handler), ``cast`` (to the target's dtype), ``tied`` (written
            through another name of the same memory), ``skipped`` (by a rule), ``mismatched``, ``missing``
            (selected in the target, absent in the source) or ``unexpected`` (in the source, used by nothing).
        target: The target tensor, or ``None`` where the entry is about a source tensor alone.
        sources: The source tensors that it is made of, or that stand opposite.
        elements: Number of elements of the target tensor, or of the source tensors where there is no target.
        handler: Name of the handler that adapts it, or, where the tensor does not fit, of one that would.
        reason: Why, where the bucket does not say it.
        allowed: The rule that allows a missing tensor to be missing.
        tied_to: The key through which a tied tensor is written.
        advice: What else would make a tensor fit that does not.
    """

    bucket: str
    target: Side | None
    sources: tuple[Side, ...]
    elements: int
    handler: str = ""
    reason: str = ""
    allowed: str = ""
    tied_to: str = ""
    advice: str = ""

    @property
    def is_problem(self) -> bool:
        """Whether no rule explains it: mismatched, or missing without being allowed to."""
        return self.bucket == "mismatched" or (self.bucket == "missing" and not self.allowed)

    @property
    def key(self) -> str:
        """The target's key, or the source's where there is no target."""
        return self.target.key if self.target is not None else self.sources[0].key

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Entry:
        """Return the entry that :meth:`to_dict` wrote."""
        target = values["target"]
        sources = tuple(_side(side) for side in values["sources"])
        return cls(**{**values, "target": None if target is None else _side(target), "sources": sources})


@dataclass(frozen=True)
class StateLine:
    """What became of one parameter's optimizer state.

    Attributes:
        key: The target parameter.
        outcome: ``"moved"``, ``"adapted"`` by the parameter's handler, or ``"reset"``: it starts anew.
        names: The states that were moved, ``("momentum_buffer",)``.
        reason: Why, where it was reset.
    """

    key: str
    outcome: str
    names: tuple[str, ...] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the line as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StateLine:
        """Return the line that :meth:`to_dict` wrote."""
        return cls(**{**values, "names": tuple(values["names"])})


def _side(values: Mapping[str, Any]) -> Side:
    return Side(values["key"], tuple(values["shape"]), values["dtype"])


# Where a transfer's tensors come from.


def _unknown() -> str | None:
    return None


@dataclass(frozen=True)
class Origin:
    """Where a transfer's tensors come from.

    Attributes:
        name: Path of the file, or what kind of thing the source is.
        format: Format of the file.
        notes: What the reader of the file had to say.
        digest: Returns the file's SHA-256; called when it is asked for, since it reads the whole file.
    """

    name: str
    format: str = ""
    notes: tuple[str, ...] = ()
    digest: Callable[[], str | None] = field(default=_unknown, compare=False, repr=False)

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Origin:
        """Describe a checkpoint."""
        name = f"a {checkpoint.format}" if checkpoint.source is None else str(checkpoint.source)
        return cls(name, checkpoint.format, tuple(checkpoint.notes), partial(getattr, checkpoint, "sha256"))

    @property
    def sha256(self) -> str | None:
        """Hexadecimal digest of the file, or ``None`` where there is none or it is gone."""
        try:
            return self.digest()
        except OSError:
            return None

    def to_dict(self) -> dict[str, Any]:
        """Return the origin as plain values, the digest among them."""
        return {"name": self.name, "format": self.format, "notes": self.notes, "sha256": self.sha256}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the values, not the checkpoint that the digest would be read from."""
        return Origin.from_dict, (self.to_dict(),)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Origin:
        """Return the origin that :meth:`to_dict` wrote."""
        digest = partial(values.get, "sha256")
        return cls(values["name"], values["format"], tuple(values["notes"]), digest)
