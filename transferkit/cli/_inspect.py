"""``transferkit inspect`` and ``transferkit diff``: the layers of a checkpoint, and what differs between two."""

from __future__ import annotations

import argparse

from transferkit.checkpoints import read_checkpoint
from transferkit.checkpoints._describe import compare, compare_in_words, describe, describe_in_words
from transferkit.cli._terminal import Command, say, width
from transferkit.display import as_json

_INSPECT_PURPOSE = "show the layers of a checkpoint"
_INSPECT_EXAMPLES = """\
examples:
  transferkit inspect alexnet.pth                    the layers of a file, none of it loaded
  transferkit inspect model.prm --match 'conv*'      some of them
  transferkit inspect run.pt --key model_ema         the other state dict in a file that holds two
  transferkit inspect llama/ --json | jq .totals     a folder of shards, for a program

exit status: 0 done, 2 the file cannot be read"""


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``transferkit inspect``."""
    parser.add_argument("path", metavar="FILE", help="a file of weights, or a folder of shards")
    parser.add_argument("--match", metavar="GLOB", default="*", help="list only layers with such names")
    parser.add_argument("--key", metavar="KEY", help="the state dict to take, where a file holds several")
    digest = "compute the SHA-256 of a file above 256 MiB too"
    parser.add_argument("--digest", action="store_true", default=None, help=digest)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _inspect(options: argparse.Namespace) -> int:
    """Print the description of a checkpoint and return the exit status."""
    checkpoint = read_checkpoint(options.path, key=options.key)
    description = describe(checkpoint, match=options.match, digest=options.digest)
    words = as_json(description) if options.json else describe_in_words(description, width())
    say(words)
    return 0


INSPECT = Command("inspect", _INSPECT_PURPOSE, _INSPECT_EXAMPLES, _add_inspect, _inspect)

_DIFF_PURPOSE = "show what differs between two checkpoints"
_DIFF_EXAMPLES = """\
examples:
  transferkit diff before.pt after.pt                names, shapes and dtypes
  transferkit diff before.pt after.pt --values       also where values differ, and by how much
  transferkit diff run.pt run.pt --key model --key model_ema --values

exit status: 0 nothing differs, 1 something differs, 2 a file cannot be read"""


def _add_diff(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``transferkit diff``."""
    parser.add_argument("first", metavar="A", help="a file of weights, or a folder of shards")
    parser.add_argument("second", metavar="B", help="another")
    parser.add_argument("--values", action="store_true", help="compare values too, which reads both files")
    key = "the state dict to take; twice for A and B"
    parser.add_argument("--key", metavar="KEY", action="append", default=[], help=key)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _diff(options: argparse.Namespace) -> int:
    """Print the comparison and return the exit status."""
    keys = (options.key * 2)[:2] if options.key else (None, None)
    paths = (options.first, options.second)
    first, second = (read_checkpoint(path, key=key) for path, key in zip(paths, keys, strict=True))
    found = compare(first, second, values=options.values, progress=True)
    words = as_json(found.to_dict()) if options.json else compare_in_words(found, *paths, width())
    say(words)
    return 1 if found else 0


DIFF = Command("diff", _DIFF_PURPOSE, _DIFF_EXAMPLES, _add_diff, _diff)
