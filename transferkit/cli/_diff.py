"""``transferkit diff``: what differs between two checkpoints."""

from __future__ import annotations

import argparse

from transferkit.checkpoints import read_checkpoint
from transferkit.checkpoints._describe import compare, compare_in_words
from transferkit.cli._terminal import as_json, harmless, width

PURPOSE = "show what differs between two checkpoints"
EXAMPLES = """\
examples:
  transferkit diff before.pt after.pt                names, shapes and dtypes
  transferkit diff before.pt after.pt --values       also where values differ, and by how much
  transferkit diff run.pt run.pt --key model --key model_ema --values

exit status: 0 nothing differs, 1 something differs, 2 a file cannot be read"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("first", metavar="A", help="a file of weights, or a folder of shards")
    parser.add_argument("second", metavar="B", help="another")
    parser.add_argument("--values", action="store_true", help="compare values too, which reads both files")
    key = "the state dict to take; twice for A and B"
    parser.add_argument("--key", metavar="KEY", action="append", default=[], help=key)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print the comparison and return the exit status."""
    keys = (options.key * 2)[:2] if options.key else (None, None)
    paths = (options.first, options.second)
    first, second = (read_checkpoint(path, key=key) for path, key in zip(paths, keys, strict=True))
    found = compare(first, second, values=options.values, progress=True)
    words = as_json(found.to_dict()) if options.json else compare_in_words(found, *paths, width())
    print(harmless(words), flush=True)
    return 1 if found else 0
