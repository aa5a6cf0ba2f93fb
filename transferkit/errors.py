"""What can go wrong, in one family.

Every error raised on purpose is a :class:`TransferKitError` and also the builtin it resembles, so that both
``except TransferKitError`` and ``except ValueError`` do what their reader expects. A message says what was
found, where, both sides of a disagreement, and the next step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "DataError",
    "DivergedError",
    "DownloadError",
    "FrozenError",
    "HandlerError",
    "LayerNotFoundError",
    "LostRankError",
    "MissingExtraError",
    "MissingFileError",
    "OutputError",
    "SelectionError",
    "StateError",
    "TransferError",
    "TransferKitError",
    "UncachableError",
    "UnsharableError",
]


class TransferKitError(Exception):
    """Base class of every error that transferkit raises on purpose."""


class ArgumentError(TransferKitError, ValueError):
    """An argument is outside what the function accepts."""


class CheckpointError(TransferKitError, ValueError):
    """A checkpoint cannot be read: unknown, damaged, refused as unsafe, or without the tensor asked for."""


class LayerNotFoundError(TransferKitError, LookupError):
    """A layer was asked for by an index or a name that is not there."""


class TransferError(TransferKitError, ValueError):
    """A transfer was refused. The model is bit for bit as it was."""


class SelectionError(TransferError, LookupError):
    """A selection rule matched no layer."""


class HandlerError(TransferError, RuntimeError):
    """A handler raised, or returned tensors that do not fit its target layer."""


class UnsharableError(TransferKitError, ValueError):
    """A backbone's feature map of a whole image does not contain the maps of its patches."""


class UncachableError(TransferKitError, ValueError):
    """Features are no function of weights and pixels alone, so a cache could hand out what is not true."""


class DataError(TransferKitError, ValueError):
    """A data set is incomplete or contradicts itself; the message names the file.

    Attributes:
        problems: All of them, where the message lists the first.
    """

    problems: tuple[str, ...] = ()


class MissingFileError(DataError, FileNotFoundError):
    """A file or folder that must be there is not."""


class DownloadError(TransferKitError, OSError):
    """A download failed or did not match its checksum."""


class FrozenError(TransferKitError, AssertionError):
    """A frozen layer is not what it was when it was frozen."""


class OutputError(TransferKitError, OSError):
    """A file cannot be written where it was asked for."""


class DivergedError(TransferKitError, ArithmeticError):
    """Training diverged: the loss is NaN or infinite."""


class LostRankError(TransferKitError, RuntimeError):
    """Another process of a distributed run is gone."""


class StateError(TransferKitError, ValueError):
    """A saved state (of a sampler, a scorer or a run) belongs to other data or settings."""


class MissingExtraError(TransferKitError, ImportError):
    """An optional dependency is needed for this and is not installed."""


def require(condition: bool, argument: str, constraint: str, value: object) -> None:
    """Raise ``ArgumentError("{argument} must be {constraint}, got {value!r}")`` unless ``condition`` holds.

    Example:
        >>> require(0.5 <= 1, "drop_rate", "between 0 and 1", 0.5)
        >>> require(2 <= 1, "drop_rate", "between 0 and 1", 2)
        Traceback (most recent call last):
        transferkit.errors.ArgumentError: drop_rate must be between 0 and 1, got 2
    """
    if not condition:
        raise ArgumentError(f"{argument} must be {constraint}, got {value!r}")


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Return up to ``count`` of ``names`` that look most like ``name``, best first.

    Example:
        >>> nearest("clasifier.6", ["features.0", "classifier.6", "classifier.1"])
        ['classifier.6', 'classifier.1']
    """
    return get_close_matches(name, list(names), n=count, cutoff=0.4)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean a, b or c?"`` for the nearest names, or an empty string where none is near.

    Example:
        >>> did_you_mean("hosre", ["horse", "person"])
        "; did you mean 'horse'?"
    """
    near = [repr(candidate) for candidate in nearest(name, names)]
    if not near:
        return ""
    return "; did you mean " + " or ".join(filter(None, [", ".join(near[:-1]), near[-1]])) + "?"


def harmless(text: str, *, lines: bool = False) -> str:
    r"""Return text with all that could pass for something else spelled out, since a file may name a layer anything.

    Such are terminal escapes, line breaks that begin a line of their own, and marks that turn the reading direction.

    Args:
        text: A name, or a line with names in it.
        lines: Leave line breaks, in text that has them on purpose.

    Example:
        >>> print(harmless("\x1b[31mconv\nnote: verified"))
        \x1b[31mconv\nnote: verified
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or (lines and letter == "\n") else ascii(letter)[1:-1] for letter in text
    )


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return the first ``most`` of ``names`` with commas between them, and how many are left out.

    Example:
        >>> listed(["conv1", "conv2", "fc"])
        'conv1, conv2, fc'
        >>> listed(["conv1", "conv2", "fc"], most=1)
        'conv1 and 2 more'
    """
    return ", ".join(map(harmless, names[:most])) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )


_SHOWN = 10  # problems that one error spells out


def raise_problems(problems: Sequence[str], heading: str, advice: str = "") -> None:
    """Raise one :class:`DataError` that lists ``problems``, if there are any, and what to do about them."""
    if problems:
        shown = "".join(f"\n  - {problem}" for problem in problems[:_SHOWN])
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        advice = f"\n{advice}" if advice else ""
        error = DataError(f"{heading}: {len(problems)} problem{'s' * (len(problems) > 1)}{shown}{more}{advice}")
        error.problems = tuple(problems)
        raise error
