"""What ``transferkit plan`` takes from the command line, and the plan that it makes of it."""

from __future__ import annotations

import argparse
from functools import reduce
from operator import and_

from transferkit.checkpoints import read_checkpoint
from transferkit.errors import ArgumentError
from transferkit.transfer.model_factory import build_model
from transferkit.transfer.plan import TransferPlan
from transferkit.transfer.rules import after, before, by_kind, by_name, every
from transferkit.transfer.select import Rule
from transferkit.transfer.weight_transfer import MappingRule, WeightTransfer

PLAN_HELP = """\
examples:
  transferkit plan alexnet.pth mynet:build                         all layers, by name
  transferkit plan alexnet.pth mynet:build --before classifier.6 --allow_missing 'classifier.*'
  transferkit plan model.prm mynet:build --mapping order           the i-th layer for the i-th
  transferkit plan resnet.pth mynet:Net --rename 'backbone.*=*'    from target names to source names
  transferkit plan vit.pth mynet:Net --adapt --json                with every handler that fits, for a program

The model is built without memory and nothing is written. The factory's module is imported, which runs it.

exit status: 0 the transfer would be done, 1 it would be refused, 2 it could not be planned"""


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``transferkit plan``."""
    add = parser.add_argument
    add("path", metavar="CHECKPOINT", help="a file of weights, or a folder of shards")
    add("model", metavar="MODULE:FACTORY", help="what builds the target, mypackage.models:build")
    add("--before", metavar="LAYER", help="select what is defined before a layer")
    add("--after", metavar="LAYER", help="select what is defined after a layer")
    add("--name", metavar="GLOB", nargs="+", help="select layers by name")
    add("--kind", nargs="+", help="select layers by kind: conv, linear, norm, ...")
    add("--mapping", default="name", choices=["name", "order", "structure"], help="how source layers are found")
    add(
        "--rename", metavar="TARGET=SOURCE", nargs="+", default=[], help="names that differ; one * on each side"
    )
    add("--handler", metavar="NAME", nargs="+", default=[], help="what converts layers that do not fit")
    add("--adapt", action="store_true", help="try every handler on what does not fit")
    add("--allow_missing", metavar="GLOB", nargs="+", help="what the checkpoint need not have")
    add("--key", metavar="KEY", help="the state dict to take, where a file holds several")
    add("--json", action="store_true", help="print JSON")


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
    )
    return transfer.plan(build_model(options.model))


def _selection(options: argparse.Namespace) -> Rule:
    rules = [before(options.before)] if options.before else []
    rules += [after(options.after)] if options.after else []
    rules += [by_name(*options.name)] if options.name else []
    rules += [by_kind(*options.kind)] if options.kind else []
    return reduce(and_, rules) if rules else every()


def _mapping(options: argparse.Namespace) -> MappingRule:
    if not options.rename:
        return str(options.mapping)
    if options.mapping != "name":
        raise ArgumentError(f"--rename goes with --mapping name, got {options.mapping!r}")
    pairs = [text.partition("=") for text in options.rename]
    wrong = [
        text for text, (target, equals, _) in zip(options.rename, pairs, strict=True) if not (target and equals)
    ]
    if wrong:
        raise ArgumentError(f"--rename takes TARGET=SOURCE, got {wrong[0]!r}")
    return {target: source for target, _, source in pairs}
