"""Training a head for 15 epochs over frozen layers: from cached features, and as the recipe is written in plain PyTorch.

    python -m tests.benchmarks.feature_training --data_dir DIR --weights FILE --out OUT

The cache is filled from empty, and that counts. Plain runs the frozen layers again in every epoch; it is timed for whole
epochs (--plain_epochs), the first before and the others after the cached way, and the rest is extrapolated, which the
table says. Its mean AP is measured all the same: a frozen layer's output is the same in every epoch, so the features of its
first timed epoch, and of the patches that this epoch left out, are kept, and its 15 epochs are trained on those.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch

from tests.benchmarks import ways
from tests.benchmarks.cached_training import cached_run
from tests.benchmarks.heads import EXACT, SHARED, Testing, Training, add_test_arguments, add_training_arguments
from tests.benchmarks.setting import load_backbone, new_head
from tests.benchmarks.table import Table, write_tables


def main() -> None:
    """Run the benchmark."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    backbone = load_backbone(options.weights)
    training, test = Training(options, backbone), Testing(options, backbone)
    plain = [training.plain_epoch(1)["seconds"]]
    pyramid_scales = [options.training_pyramid_scales, *([None] if options.exact_cache else [])]
    cached = {}
    for n in pyramid_scales:
        way = ways.EXACT if n is None else ways.shared_name(n)
        make = partial(cached_run, options, training.photos, backbone, n)
        cached[way] = training.parts.tensors(f"cached_{way.replace(' ', '_').replace(',', '')}", make)
    plain += [training.plain_epoch(number)["seconds"] for number in range(2, options.plain_epochs + 1)]
    tables = [time_table(options, plain, cached), quality_table(options, training, test, cached)]
    for table in tables:
        print(table.markdown(), end="\n\n")
    if options.json:
        write_tables(options.json, tables)


def time_table(options: argparse.Namespace, plain: list[list[float]], cached: dict[str, dict]) -> Table:
    """Return how long each way trains."""
    table = Table(
        f"{options.epochs} epochs of head training on {options.train_photos} photos at {options.train_patches} patches, "
        f"{options.threads} threads, {options.workers} workers",
        {"way": "", "fill the cache, s": ",.1f", "an epoch, s": ",.1f", "all epochs, s": ",.0f", "times as fast": ".1f",
         "cache, MB": ",.0f"},
    )  # fmt: skip
    epochs = [sum(parts) for parts in plain]
    whole = [options.epochs * seconds for seconds in epochs]
    table.add("plain PyTorch, extrapolated", "", epochs, whole, [1.0], "")
    for way, run in cached.items():
        total = run["total"]
        megabytes = run["bytes"] / 1e6
        table.add(f"cached, {way}", run["fill"], run["epochs"], total, [w / total for w in whole], megabytes)
    middle, parts = statistics.median(epochs), [len(p) * s for p in plain for s in p]
    table.notes.append(
        f"Plain was timed for {len(epochs)} whole epoch(s), {', '.join(f'{s:.0f}' for s in epochs)} s; "
        f"all {options.epochs} are that many times as much. Taken from its slowest and its fastest part of an epoch "
        f"instead, an epoch is {min(parts):.0f} to {max(parts):.0f} s, median of epochs {middle:.0f}."
    )
    return table


def quality_table(
    options: argparse.Namespace, training: Training, test: Testing, cached: dict[str, dict]
) -> Table:
    """Return the final mean AP of each way."""
    table = Table(
        f"Final mean AP on {options.test_photos} test photos with {options.test_patches} patches each",
        {"head trained on": "", "tested on": "", "mAP, %": ".2f", "minus plain": "+.2f"},
    )
    tests = {
        "exact features": (ways.EXACT, ways.exact(training.backbone)),
        "shared features": (
            ways.shared_name(options.training_pyramid_scales),
            ways.shared(training.backbone, options.training_pyramid_scales),
        ),
    }
    heads = {
        f"plain PyTorch's features, {options.seeds} seeds": training.heads(EXACT),
        f"shared features, the same {options.seeds} seeds": training.heads(SHARED),
    }
    for way, run in cached.items():
        head = new_head(training.num_classes)
        head.load_state_dict(run["head"])
        heads[f"the timed run's cache, {way}"] = [head.eval()]
    yardstick: list[float] = []
    for trained, some in heads.items():
        for tested, (way, features) in tests.items():
            found = test.mean_aps(test.scores(way, features, some))
            yardstick = yardstick or found
            table.add(trained, tested, found, [one - its for one, its in zip(found, yardstick, strict=False)])
    table.notes.append(
        "All-points AP, difficult objects ignored. With the same seed, first weights, order of photos and choice of patches "
        "are the same; the timed run draws its own, as transferkit does, and is compared with the first seed."
    )
    return table


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder that holds VOCdevkit")
    parser.add_argument("--weights", type=Path, required=True, help="AlexNet's convolutions")
    parser.add_argument("--out", type=Path, required=True, help="where parts are kept")
    parser.add_argument("--plain_epochs", type=int, default=1, help="that plain is timed for")
    parser.add_argument("--exact_cache", action="store_true", help="also time a cache of exact features")
    add_training_arguments(parser)
    add_test_arguments(parser)
    parser.add_argument("--json", type=Path, help="also write the tables here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
