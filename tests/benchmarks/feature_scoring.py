"""Scoring photos with features that patches share: how fast, and at what cost in mean AP.

    python -m tests.benchmarks.feature_scoring --data_dir DIR --weights FILE --out OUT

Times whole photos, decoding to scores: the recipe in plain PyTorch, the exact way (each patch is cut, resized and run), and
the shared ways (the whole photo is run at several sizes, and the patches' features are read from its maps). In a round all
ways score the same photos, with the same number of patches each. Then the mean AP of each way on the test photos, for heads
that were trained on exact features and for heads trained on shared ones; and a plot of one against the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.benchmarks import plain, ways
from tests.benchmarks.heads import EXACT, SHARED, Testing, Training, add_test_arguments, add_training_arguments
from tests.benchmarks.parts import Parts
from tests.benchmarks.rounds import Spent, one_round, ratios
from tests.benchmarks.scores_on_photos import paired_interval
from tests.benchmarks.setting import Photos, load_backbone, new_head
from tests.benchmarks.table import Table, write_tables
from tests.benchmarks.trade_off import plot

PLAIN = "plain PyTorch"
Times = dict[str, list[Spent]]
"""What each way took for the photos of each round."""
Scores = dict[str, dict[str, list[Tensor]]]
"""Scores of the test photos by way and by what the heads were trained on, one for each seed."""


def main() -> None:
    """Run the benchmark."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    backbone = load_backbone(options.weights)
    times = timed_ways(options, backbone)
    test = Testing(options, backbone)
    scores = scored_ways(options, backbone, test)
    tables = [speed_table(options, times), quality_table(options, times, scores, test)]
    picture, size = options.out / "pictures/feature_scoring.png", options.photos // options.rounds
    per_photo = {way: [spent.seconds / size for spent in found] for way, found in times.items()}
    plot(per_photo, {way: test.mean_aps(found[EXACT]) for way, found in scores.items()}, picture)
    tables[1].pictures.append(f"pictures/{picture.name}")
    for table in tables:
        print(table.markdown(), end="\n\n")
    if options.json:
        write_tables(options.json, tables)


def timed_ways(options: argparse.Namespace, backbone: nn.Module) -> Times:
    """Return what each way takes for the photos of each round."""
    every = Photos.read(options.data_dir, "test", options.photos)
    size = options.photos // options.rounds
    rounds = [
        every.part(n * size, (n + 1) * size).random_subset(options.patches) for n in range(options.rounds)
    ]
    head = new_head(len(every.data.class_names))
    scorers: dict[str, Callable[[Photos], object]] = {
        PLAIN: partial(plain_scores, backbone, head, options.workers)
    }
    if options.bfloat16:
        scorers[PLAIN + ways.HALF] = torch.autocast("cpu", torch.bfloat16)(scorers[PLAIN])
    for name, features in feature_ways(options, backbone).items():
        scorers[name] = partial(ways.score, features, head, options.workers)
    for scorer in scorers.values():  # the first call sets up threads and memory
        scorer(every.part(0, 1).random_subset(plain.BATCH))
    names = (
        "photos",
        "patches",
        "rounds",
        "pyramid_scales",
        "bfloat16",
        "threads",
        "workers",
        "data_dir",
        "weights",
    )
    parts = Parts(options.out, name="timed_ways", **{name: getattr(options, name) for name in names})
    timed = {
        name: partial(lambda scorer, number: scorer(rounds[number]), scorer) for name, scorer in scorers.items()
    }
    found = [parts.figures(f"round_{n}", partial(one_round, timed, n)) for n in range(options.rounds)]
    return {name: [Spent(*spent[name]) for spent in found] for name in timed}


def feature_ways(options: argparse.Namespace, backbone: nn.Module) -> dict[str, ways.Features]:
    """Return the ways that are compared with plain, by name."""
    half = ways.feature_ways(backbone, [options.training_pyramid_scales], half=True) if options.bfloat16 else {}
    return {**ways.feature_ways(backbone, options.pyramid_scales), **half}


def plain_scores(backbone: nn.Module, head: nn.Module, workers: int, photos: Photos) -> Tensor:
    """Score photos in plain PyTorch."""
    data = plain.PhotoPatches(photos.paths, photos.boxes, photos.labels, plain.every_patch)
    return plain.score(backbone, head, plain.loader(data, workers), len(photos.paths))


def scored_ways(options: argparse.Namespace, backbone: nn.Module, test: Testing) -> Scores:
    """Return the scores of the test photos by every way and head."""
    training = Training(options, backbone)
    heads = {kind: training.heads(kind) for kind in (EXACT, SHARED)}
    return {
        way: {kind: test.scores(way, features, of) for kind, of in heads.items()}
        for way, features in feature_ways(options, backbone).items()
    }


def speed_table(options: argparse.Namespace, times: Times) -> Table:
    """Return how fast the ways are."""
    size = options.photos // options.rounds
    table = Table(
        f"Scoring {options.photos} photos at {options.patches} patches, {options.rounds} rounds of {size} photos, "
        f"{options.threads} threads, {options.workers} workers",
        {
            "way": "",
            "seconds per photo": ".2f",
            "patches/s": ",.0f",
            "times as fast as plain": ".2f",
            "processor time, of plain's": ".2f",
        },
    )
    plain_seconds, plain_processor = zip(*times[PLAIN], strict=True)
    for way, found in times.items():
        seconds, processor = zip(*found, strict=True)
        table.add(way, [s / size for s in seconds], [size * options.patches / s for s in seconds],
                  ratios(plain_seconds, seconds), ratios(processor, plain_processor))  # fmt: skip
    return table


def quality_table(options: argparse.Namespace, times: Times, scores: Scores, test: Testing) -> Table:
    """Return the mean AP of each way."""
    table = Table(
        f"Mean AP on {options.test_photos} test photos with {options.test_patches} patches each, against time; heads "
        f"trained on {options.train_photos} photos for {options.epochs} epochs, {options.seeds} seeds",
        {"way": "", "seconds per photo": ".2f", "mAP, head trained on exact features": ".2f",
         "minus exact": "+.2f", "95 % interval": "", "mAP, head trained on shared features": ".2f"},
    )  # fmt: skip
    exact = scores[ways.EXACT]
    for way, found in scores.items():
        on_exact, on_shared = (test.mean_aps(found[kind]) for kind in (EXACT, SHARED))
        less = [mine - its for mine, its in zip(on_exact, test.mean_aps(exact[EXACT]), strict=True)]
        interval = (
            ""
            if way == ways.EXACT
            else paired_interval(found[EXACT][0], exact[EXACT][0], test.photos.data.presence())
        )
        per_photo = [spent.seconds * options.rounds / options.photos for spent in times[way]]
        table.add(way, per_photo, on_exact, less, interval, on_shared)
    table.notes.append(
        f"All-points AP, difficult objects ignored. Shared features for training are "
        f"those of {ways.shared_name(options.training_pyramid_scales)!r}. The interval "
        "is a paired bootstrap over the test photos for the first seed, its difference first."
    )
    return table


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder that holds VOCdevkit")
    parser.add_argument("--weights", type=Path, required=True, help="AlexNet's convolutions")
    parser.add_argument("--out", type=Path, required=True, help="where parts and the plot are kept")
    parser.add_argument("--photos", type=int, default=50, help="that are timed")
    parser.add_argument("--patches", type=int, default=448, help="of each")
    parser.add_argument("--rounds", type=int, default=5)
    add_test_arguments(parser)
    parser.add_argument(
        "--pyramid_scales",
        type=int,
        nargs="+",
        default=[0, 6, 4, 2],
        help="of the shared ways; 0: one per scale",
    )
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=ways.has_bfloat16(),
                        help="also in half precision (default where the processor has it)")  # fmt: skip
    add_training_arguments(parser)
    parser.add_argument("--json", type=Path, help="also write the tables here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
