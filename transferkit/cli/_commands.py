"""The parts that commands share: their form, output that suits the terminal, and shell completion."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from functools import reduce
from operator import and_
from typing import NamedTuple

import torch

from transferkit.checkpoints import convert_checkpoint, read_checkpoint
from transferkit.checkpoints._describe import compare, compare_in_words, describe, describe_in_words
from transferkit.display import as_json
from transferkit.errors import ArgumentError, TransferError, harmless
from transferkit.layers import split_key
from transferkit.transfer._refusal import globs_for
from transferkit.transfer._table import render_text
from transferkit.transfer._target import build_model
from transferkit.transfer.account import TransferPlan
from transferkit.transfer.select import Rule, after, before, by_kind, by_name, every
from transferkit.transfer.structure import ByStructure
from transferkit.transfer.weight_transfer import MappingRule, WeightTransfer


class Command(NamedTuple):
    """A command of the command line.

    Attributes:
        name: The word that is typed.
        purpose: A few words for the help, beginning in lower case.
        examples: The end of the command's help.
        add_arguments: Adds the command's arguments to a parser.
        run: Runs the command and returns the exit status.
    """

    name: str
    purpose: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def width() -> int | None:
    """Return the terminal's width, or ``None`` where the output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else None


def color() -> bool:
    """Return whether to color: on a terminal that can, unless ``NO_COLOR`` is set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say(words: str) -> None:
    """Print text with line breaks of its own, in which no name can pass for anything else."""
    print(harmless(words, lines=True), flush=True)


def complain(error: object, advice: str = "") -> None:
    """Print an error, every line but the first set in, so that no name in it begins a line."""
    words = harmless(str(error), lines=True).replace("\n", "\n  ")
    print(f"transferkit: {words}{advice}", file=sys.stderr)


# Shell completion without any package: a static script, so that pressing TAB imports nothing.
_SCRIPT = """\
_transferkit() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words
  if [ "$COMP_CWORD" = 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  if [ "${{COMP_WORDS[COMP_CWORD-1]}}" = --mapping ]; then
    COMPREPLY=($(compgen -W "name order structure" -- "$word"))
  elif [[ $word == -* ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$word"))
  else
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}}
complete -o filenames -F _transferkit transferkit"""


def script(parser: argparse.ArgumentParser) -> str:
    """Return a function for bash that completes a parser's commands, their options, and files.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> inspect = parser.add_subparsers().add_parser("inspect")
        >>> "inspect) words='-h --help'" in script(parser)
        True
    """
    options = {name: _options(command) for name, command in commands_of(parser).items()}
    cases = "\n".join(f"    {name}) words='{' '.join(known)}' ;;" for name, known in options.items())
    return _SCRIPT.format(cases=cases, commands=" ".join(options))


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return a parser's commands by name."""
    choices = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {name: command for found in choices for name, command in found.items()}


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings]


# transferkit inspect and transferkit diff


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


# transferkit plan


_PURPOSE = "show what a transfer onto a model would do"
_EXAMPLES = """\
examples:
  transferkit plan alexnet.pth mynet:build                           all layers, by name
  transferkit plan alexnet.pth mynet:build --before classifier.6     all before the head
  transferkit plan alexnet.pth mynet:build --exclude 'classifier.*'  all but some
  transferkit plan model.prm mynet:build --mapping order             the i-th layer for the i-th
  transferkit plan resnet.pth mynet:Net --rename 'backbone.*=*'      from target names to source names
  transferkit plan resnet.pth mynet:Net --mapping structure          no name is the same
  transferkit plan vit.pth mynet:Net --adapt --json                  with every handler that fits

MODULE:FACTORY is a class or function, in a module that can be imported from here, that builds the target without
arguments. The model is built without memory and nothing is written. Importing the module runs it.

exit status: 0 the transfer would be done, 1 it would be refused, 2 it could not be planned"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("path", metavar="CHECKPOINT", help="a file of weights, or a folder of shards")
    parser.add_argument(
        "model", metavar="MODULE:FACTORY", help="what builds the target, mypackage.models:build"
    )
    add = parser.add_argument_group("which layers of the target").add_argument
    add("--before", metavar="LAYER", help="what is defined before a layer")
    add("--after", metavar="LAYER", help="what is defined after a layer")
    add("--name", metavar="GLOB", nargs="+", help="those with such names")
    add("--kind", nargs="+", help="those of a kind: conv, linear, norm, ...")
    add("--exclude", metavar="GLOB", nargs="+", help="none with such names")
    add = parser.add_argument_group("from which layers of the checkpoint").add_argument
    add("--mapping", default="name", choices=["name", "order", "structure"], help="how they are found")
    add("--rename", metavar="TARGET=SOURCE", nargs="+", default=[], help="names that differ; one * a side")
    add("--allow_missing", metavar="GLOB", nargs="+", help="what the checkpoint need not have")
    add("--keep", metavar="GLOB", nargs="+", default=[], help="tensors of the target that stay as they are")
    add("--key", metavar="KEY", help="the state dict to take, where a file holds several")
    add = parser.add_argument_group("where they do not fit").add_argument
    add("--handler", metavar="NAME", nargs="+", default=[], help="what converts them")
    add("--adapt", action="store_true", help="try every handler")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _plan(options: argparse.Namespace) -> int:
    """Print the plan and return the exit status."""
    plan = plan_of(options)
    if options.json:
        say(as_json(plan.to_dict()))
    else:
        print(render_text(plan, width=width(), color=color()), flush=True)
    try:
        plan.check()
    except TransferError as error:
        complain(error, _here(plan))
        return 1
    return 0


def plan_of(options: argparse.Namespace) -> TransferPlan:
    """Return the plan that the parsed arguments ask for.

    Raises:
        TransferKitError: The file cannot be read, the model not built, or a rule matches nothing.
    """
    transfer = WeightTransfer(
        read_checkpoint(options.path, key=options.key),
        select=_selection(options),
        mapping=_mapping(options),
        handlers=options.handler,
        on_mismatch="adapt" if options.adapt else "error",
        allow_missing=options.allow_missing,
        keep=options.keep,
    )
    return transfer.plan(build_model(options.model))


def _here(plan: TransferPlan) -> str:
    """Return an error's advice for mismatched layers as options of this command."""
    names = list(dict.fromkeys(split_key(key)[0] for key in plan.mismatched))
    if not names:
        return ""
    selected = {split_key(entry.key)[0] for entry in plan.entries if entry.target and entry.bucket != "skipped"}
    shown = " ".join(shlex.quote(glob) for glob in globs_for(names, selected - set(names)))
    return f"\n  on this command line: --exclude {shown}, or --adapt"


def _selection(options: argparse.Namespace) -> Rule:
    rules = [before(options.before)] if options.before else []
    rules += [after(options.after)] if options.after else []
    rules += [by_name(*options.name)] if options.name else []
    rules += [by_kind(*options.kind)] if options.kind else []
    rules += [~by_name(*options.exclude)] if options.exclude else []
    return reduce(and_, rules) if rules else every()


def _mapping(options: argparse.Namespace) -> MappingRule:
    if not options.rename:
        return str(options.mapping)
    if options.mapping == "order":
        raise ArgumentError("--rename goes with --mapping name or structure, got 'order'")
    names: dict[str | re.Pattern[str], str] = dict(_renamed(options.rename, "TARGET=SOURCE").items())
    return ByStructure(names) if options.mapping == "structure" else names


def _renamed(texts: list[str], form: str) -> dict[str, str]:
    """Return the pairs of names that ``--rename`` gives."""
    pairs = [text.partition("=") for text in texts]
    wrong = [text for text, (new, equals, _) in zip(texts, pairs, strict=True) if not (new and equals)]
    if wrong:
        raise ArgumentError(f"--rename takes {form}, got {wrong[0]!r}")
    return {new: old for new, _, old in pairs}


PLAN = Command("plan", _PURPOSE, _EXAMPLES, _add_arguments, _plan)


# transferkit convert


_CONVERT_PURPOSE = "write a checkpoint as safetensors"
_CONVERT_EXAMPLES = """\
examples:
  transferkit convert model.pth model.safetensors                      one file
  transferkit convert run/ weights/ --max_shard_size 2GB               shards and an index, as Hugging Face reads them
  transferkit convert run.pt half.safetensors --key model_ema --dtype float16
  transferkit convert net.pth backbone.safetensors --select 'backbone.*' --rename '*=backbone.*'

Every tensor is read back and compared. One shard at a time is in memory. What is there already is not written over,
and what is broken off is not left behind.

exit status: 0 written, 2 it could not be done"""


def _add_convert(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``transferkit convert``."""
    parser.add_argument("source", metavar="SRC", help="a file of weights, or a folder of shards")
    parser.add_argument("destination", metavar="DST", help="a file that ends in .safetensors, or a folder")
    add = parser.add_argument
    add("--key", metavar="KEY", help="the state dict to take, where a file holds several")
    add("--select", metavar="GLOB", nargs="+", help="write only layers with such names")
    add("--exclude", metavar="GLOB", nargs="+", help="write none with such names")
    add("--rename", metavar="NEW=OLD", nargs="+", default=[], help="names of layers; one * a side")
    add("--dtype", choices=["float32", "float16", "bfloat16", "float64"], help="of floating-point tensors")
    add("--max_shard_size", metavar="SIZE", help="5GB, 200MB; a folder's shards have at most 5GB without it")


def _convert(options: argparse.Namespace) -> int:
    """Convert, print what was written, and return the exit status."""
    rules = [by_name(*options.select)] if options.select else []
    rules += [~by_name(*options.exclude)] if options.exclude else []
    found = convert_checkpoint(
        options.source,
        options.destination,
        rename=_renamed(options.rename, "NEW=OLD") or None,
        select=reduce(and_, rules) if rules else None,
        dtype=getattr(torch, options.dtype) if options.dtype else None,
        max_shard_size=options.max_shard_size,
        key=options.key,
        progress=True,
    )
    say(str(found))
    return 0


CONVERT = Command("convert", _CONVERT_PURPOSE, _CONVERT_EXAMPLES, _add_convert, _convert)


# transferkit check


_CHECK_PURPOSE = "show what a folder of photos holds, and what is wrong with it"
_CHECK_EXAMPLES = """\
examples:
  transferkit check photos/                          format, classes, boxes, and all mistakes at once
  transferkit check export/ --format coco            where a folder may be read in several ways
  transferkit check photos/ --json | jq .problems    for a program

The folder is a VOCdevkit, photos with XML, YOLO, COCO, photos in folders by class, or photos with a CSV of labels.
Every photo is decoded; photos that two image sets share are problems, and nearly equal ones are listed.

exit status: 0 nothing is wrong, 1 something is, 2 it is no such folder"""


def _add_check(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``transferkit check``."""
    parser.add_argument("path", metavar="DIR", help="a folder of photos, or a file that describes some")
    formats = ["voc", "coco", "yolo", "xml", "table", "classes"]
    parser.add_argument("--format", choices=formats, help="how to read it, where several ways fit")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _check(options: argparse.Namespace) -> int:
    """Print what was found and return the exit status."""
    from transferkit.datasets import check

    found = check(options.path, options.format, progress=True)
    say(as_json(found.to_dict()) if options.json else str(found))
    return 1 if found.problems else 0


CHECK = Command("check", _CHECK_PURPOSE, _CHECK_EXAMPLES, _add_check, _check)
