"""``transferkit inspect``: the layers of a checkpoint."""

from __future__ import annotations

import argparse

from transferkit.checkpoints import read_checkpoint
from transferkit.checkpoints._describe import describe, describe_in_words
from transferkit.cli._terminal import as_json, harmless, width

PURPOSE = "show the layers of a checkpoint"
EXAMPLES = """\
examples:
  transferkit inspect alexnet.pth                    the layers of a file, none of it loaded
  transferkit inspect model.prm --match 'conv*'      some of them
  transferkit inspect run.pt --key model_ema         the other state dict in a file that holds two
  transferkit inspect llama/ --json | jq .totals     a folder of shards, for a program

exit status: 0 done, 2 the file cannot be read"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("path", metavar="FILE", help="a file of weights, or a folder of shards")
    parser.add_argument("--match", metavar="GLOB", default="*", help="list only layers with such names")
    parser.add_argument("--key", metavar="KEY", help="the state dict to take, where a file holds several")
    digest = "compute the SHA-256 of a file above 256 MiB too"
    parser.add_argument("--digest", action="store_true", default=None, help=digest)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    """Print the description and return the exit status."""
    checkpoint = read_checkpoint(options.path, key=options.key)
    description = describe(checkpoint, match=options.match, digest=options.digest)
    words = as_json(description) if options.json else describe_in_words(description, width())
    print(harmless(words), flush=True)
    return 0
