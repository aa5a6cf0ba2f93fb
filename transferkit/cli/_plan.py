"""``transferkit plan``: a dry run of a transfer."""

from __future__ import annotations

import argparse
import re
import shlex
from functools import reduce
from operator import and_

from transferkit.checkpoints import read_checkpoint
from transferkit.cli._terminal import Command, color, complain, say, width
from transferkit.display import as_json
from transferkit.errors import ArgumentError, TransferError
from transferkit.layers import split_key
from transferkit.transfer._refusal import globs_for
from transferkit.transfer._table import render_text
from transferkit.transfer._target import build_model
from transferkit.transfer.account import TransferPlan
from transferkit.transfer.select import Rule, after, before, by_kind, by_name, every
from transferkit.transfer.structure import ByStructure
from transferkit.transfer.weight_transfer import MappingRule, WeightTransfer

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
    pairs = [text.partition("=") for text in options.rename]
    wrong = [
        text for text, (target, equals, _) in zip(options.rename, pairs, strict=True) if not (target and equals)
    ]
    if wrong:
        raise ArgumentError(f"--rename takes TARGET=SOURCE, got {wrong[0]!r}")
    names: dict[str | re.Pattern[str], str] = {target: source for target, _, source in pairs}
    return ByStructure(names) if options.mapping == "structure" else names


PLAN = Command("plan", _PURPOSE, _EXAMPLES, _add_arguments, _plan)
