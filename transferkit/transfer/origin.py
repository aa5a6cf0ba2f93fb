"""Where a transfer's tensors come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transferkit.checkpoints import Checkpoint


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
