"""The commands for photos: fit a classifier on a folder, predict with it, and join the shards of either."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferkit.cli._commands import Command, say
from transferkit.errors import ArgumentError, harmless

if TYPE_CHECKING:
    from transferkit.finetune import PredictionFile, Predictions, SceneClassifier, Shard

# What trains and scores is imported when a command runs: the others start faster without.

_FIT = """\
examples:
  transferkit fit photos/ --out pets.tk                       photos with boxes (VOC, labelImg, YOLO, COCO) or labels
  transferkit fit labels.csv --out pets.tk                    a table of files and labels
  transferkit fit photos/ --out pets.tk --model alexnet-convolutions --weights alexnet.pth
  transferkit fit photos/ --out pets.tk --test_share 0        train on all of them, and measure nothing
  transferkit fit photos/ --out pets.tk --cache_dir features --shard 3/8    the third of 8 jobs that compute
                                    the features to train on; `transferkit join features`, then fit without --shard

Of a folder without a test set a fifth is held out, and the mean AP on it is printed at the end.
`transferkit check photos/` says what is in a folder, and what is wrong with it.

exit status: 0 done, 2 it could not be done"""

_PREDICT = """\
examples:
  transferkit predict pets.tk new/                            what is in each photo
  transferkit predict pets.tk new/ --csv out.csv              a table: file, one column a class, labels
  transferkit predict pets.tk new/ --csv out.csv --precision 0.9    say a class where 9 of 10 are right
  transferkit predict pets.tk new/ --maps maps/               where in each photo its classes are seen
  transferkit predict pets.tk new/ --csv out.csv --shard 3/8  the third of 8 jobs, each on any machine; then
  transferkit join out.csv                                    one table of them all

A job that was stopped goes on where it was when the same command is typed again.

exit status: 0 done, 1 done but for photos that cannot be used, which are listed, 2 it could not be done"""


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _scales(text: str) -> int | tuple[float, ...]:
    return tuple(map(float, text.split(","))) if "," in text else _positive(text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to below 1, got {value:g}")
    return value


def _add_device(add: Callable[..., Any]) -> None:
    add("-b", "--backend", "--device", metavar="DEVICE", help="cpu, gpu or cuda:N (default gpu if any)")
    workers = min(4, os.cpu_count() or 1)
    add("--num_workers", type=int, default=workers, help=f"processes that decode photos (default {workers})")


def _add_fit(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "photos",
        metavar="DIR",
        type=Path,
        help="a folder of photos and their annotations, or a file that lists them",
    )
    add("--out", metavar="FILE", type=Path, required=True, help="where the classifier goes")
    add = parser.add_argument_group("photos").add_argument
    add(
        "--test_share",
        type=_share,
        default=0.2,
        metavar="SHARE",
        help="held out, if there is no test set (default 0.2)",
    )
    add("--bad_boxes", choices=["error", "cut", "skip", "keep"], default="error", help="that leave their photo")
    add("--bad_photos", choices=["error", "skip"], default="error", help="that cannot be read")
    add("--format", metavar="NAME", help="voc, coco, yolo, xml, table or classes, where several would fit")
    add = parser.add_argument_group("network and recipe").add_argument
    add("--model", metavar="NAME", help="by default the best that can be had as this machine is")
    add("--weights", metavar="FILE", type=Path, help="pretrained weights (default the model's own)")
    add("--protocol", metavar="NAME", default="recommended", help="recommended, neon2016 or oquab2014")
    add("-e", "--epochs", type=_positive, help="at most (default the protocol's)")
    add("-r", "--rng_seed", type=int, default=13, help="seed of every random choice (default 13)")
    add = parser.add_argument_group("results and speed").add_argument
    add("--report", action="store_true", help="also write FILE.html, with maps (needs matplotlib)")
    add("--license", metavar="TEXT", help="of the classifier, for its card")
    add(
        "--pyramid_scales",
        type=_scales,
        metavar="N|SCALES",
        help="of shared features; 1,1.4,2 is four times as fast",
    )
    add("--cache_dir", type=Path, metavar="DIR", help="keep features, and what files say, for further fits")
    add("--amp", action=argparse.BooleanOptionalAction, help="compute in bfloat16 (default on a GPU only)")
    add(
        "--shard", metavar="I/N", help="only compute features, of the Ith of N shares of the photos to train on"
    )
    _add_device(add)


def _fit(options: argparse.Namespace) -> int:
    from transferkit.files import require_writable
    from transferkit.finetune import (
        PROTOCOLS,
        FeatureSettings,
        LoopSettings,
        SceneClassifier,
        Shard,
        choose_device,
    )
    from transferkit.finetune.networks import network_at_hand

    if options.protocol not in PROTOCOLS:
        raise ArgumentError(f"--protocol must be one of {', '.join(PROTOCOLS)}, got {options.protocol!r}")
    shard = None if options.shard is None else Shard.parse(options.shard)
    if shard is not None and options.cache_dir is None:
        raise ArgumentError("--shard computes features: say where they go, with --cache_dir DIR")
    require_writable(options.out)
    model = options.model
    if model is None:
        model, why = network_at_hand(options.weights)
        say(f"network {model}: {why}")
    began = time.monotonic()
    train, test, title = _sets_of(options)
    classifier = SceneClassifier(
        model,
        PROTOCOLS[options.protocol].adjusted(epochs=options.epochs),
        weights=options.weights,
        features=FeatureSettings(
            pyramid_scales=options.pyramid_scales,
            amp=options.amp,
            folder=options.cache_dir if shard is None else shard.beside(options.cache_dir),
        ),
        loop=LoopSettings(amp=options.amp),
        seed=options.rng_seed,
        num_workers=options.num_workers,
        device=choose_device(options.backend),
    )
    if shard is not None:
        return _fill(classifier, train, shard)
    classifier.fit(train, log=say, progress=True)
    result = None if test is None else _tested(classifier, train, test, title, options)
    classifier.save(options.out, card=classifier.card(result, license=options.license))
    measured = "not tested" if result is None else f"mean AP {result.mean_ap():.1%} on photos it never saw"
    size, classes = options.out.stat().st_size / 1e6, len(classifier.class_names) - 1
    say(
        f"\n{options.out} ({size:.1f} MB; its card is {options.out}.md): {classes} classes, {measured}, "
        f"{(time.monotonic() - began) / 60:.1f} minutes\n"
        f"next: transferkit predict {options.out} PHOTOS --csv predictions.csv"
    )
    return 0


def _fill(classifier: SceneClassifier, photos: Any, shard: Shard) -> int:
    """Compute the features of a share of the photos."""
    from torch.utils.data import Subset

    mine = shard.of(len(photos))
    if mine:
        cache = classifier.cache(Subset(photos, mine))
        cache.fill(num_workers=classifier.num_workers, progress=True)
    say(f"features of {len(mine)} of {len(photos)} photos are in {classifier.features.folder}")
    return 0


def _sets_of(options: argparse.Namespace) -> tuple[Any, Any, str]:
    """Return the photos to train on, those to test on if any, and a title."""
    from transferkit.datasets import open_photos, split

    how = {"bad_boxes": options.bad_boxes, "bad_photos": options.bad_photos, "progress": True}
    how["index"] = options.cache_dir and options.cache_dir / "annotations.index"
    found = open_photos(options.photos, options.format, **how)
    say(str(found))
    if found.test is not None:
        return found.train, found.test, options.photos.name
    if not options.test_share:
        return found.train, None, options.photos.name
    train, test = split(found.train, options.test_share, seed=options.rng_seed)
    say(f"no test set: {len(test)} of {len(train) + len(test)} photos are held out to test on")
    return train, test, options.photos.name


def _tested(classifier: SceneClassifier, train: Any, test: Any, title: str, options: argparse.Namespace) -> Any:
    """Test, print the table, and write the report if it is wanted."""
    from transferkit.finetune import RunReport, build_report, look_at_patches
    from transferkit.scorer import PatchLog
    from transferkit.scorer.pictures import require_matplotlib

    if options.report:
        require_matplotlib()
    patches = classifier.score(test, keep_patches=options.report, progress=True)
    result = classifier.evaluate(test, patches, bootstrap=1000)
    say(str(result))
    if isinstance(patches, PatchLog):
        seen = look_at_patches(classifier.sampler(train), train)
        report = RunReport.of(classifier.run, result, patches, test, title=title, patches=seen)
        say(f"report: {build_report(report, progress=True).write(Path(f'{options.out}.html'))}")
    return result


def _add_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("classifier", metavar="FILE", type=Path, help="a classifier that `transferkit fit` wrote")
    add("photos", metavar="PHOTOS", nargs="+", help="a folder, or photos")
    add = parser.add_argument_group("results").add_argument
    add("--csv", metavar="FILE", type=Path, help="a table: file, one column a class with its score, labels")
    add(
        "--jsonl",
        metavar="FILE",
        type=Path,
        help="lines of JSON, with probabilities and the best box of each class",
    )
    add(
        "--maps",
        metavar="DIR",
        type=Path,
        help="a picture a photo of where its classes are seen (needs matplotlib)",
    )
    add(
        "--precision",
        type=float,
        metavar="SHARE",
        help="say a class where so many are right (default the best F1)",
    )
    add = parser.add_argument_group("how").add_argument
    exact = "fitted: as in training; exact: each patch through the whole network, as the exported network does"
    add("--features", choices=["fitted", "exact"], default="fitted", help=exact)
    add("--model", metavar="MODULE:FACTORY", help="the network, for a classifier of one of your own")
    add(
        "--weights",
        metavar="FILE",
        type=Path,
        help="its pretrained weights, for one that was fitted on given ones",
    )
    add("--restart", action="store_true", help="do not go on with a job that was stopped")
    add("--shard", metavar="I/N", help="only the Ith of N shares of the photos; `transferkit join` joins them")
    _add_device(add)


def _predict(options: argparse.Namespace) -> int:
    from transferkit.finetune import SceneClassifier, Shard, choose_device

    if options.csv and options.jsonl:
        raise ArgumentError("give --csv or --jsonl, not both; type the command again for the other")
    shard = None if options.shard is None else Shard.parse(options.shard)
    if shard is not None and not (options.csv or options.jsonl):
        raise ArgumentError("--shard is a share of a file: say which, with --csv or --jsonl")
    draw = None if options.maps is None else _drawer(options.maps)
    classifier = SceneClassifier.load(
        options.classifier,
        network=options.model,
        weights=options.weights,
        num_workers=options.num_workers,
        device=choose_device(options.backend),
    )
    photos = options.photos[0] if len(options.photos) == 1 else options.photos
    how: dict[str, Any] = {
        "precision": options.precision,
        "features": options.features,
        "maps": draw is not None,
    }
    path = options.csv or options.jsonl
    with _warnings_as_lines():
        if path is None:
            found: Any = classifier.predict(photos, progress=True, **how)
            say("\n".join(_lines(found)))
            if draw is not None:
                draw(found)
        else:
            how |= {"boxes": options.jsonl is not None, "resume": not options.restart}
            how |= {"on_lot": draw, "shard": shard}
            try:
                found = classifier.predict_to(path, photos, progress=True, **how)
            except KeyboardInterrupt:
                print("\nstopped; the same command goes on where it was", file=sys.stderr)
                raise
            _say_written(found)
    return _say_skipped(found)


def _say_written(found: PredictionFile) -> None:
    resumed = f", {found.resumed} of them by the job that was stopped" if found.resumed else ""
    say(f"{found.path}: {found.photos} photo{'s' * (found.photos != 1)}{resumed}")


def _say_skipped(found: Predictions | PredictionFile) -> int:
    """List the photos that cannot be used, and return the exit status."""
    for name, problem in found.bad_photos.items():
        print(harmless(f"skipped {name}: {problem}"), file=sys.stderr)
    return 1 if found.bad_photos else 0


def _lines(found: Predictions) -> Iterator[str]:
    """Yield a line a photo: its labels with their probabilities, or without thresholds the best three scores."""
    for record in found.records():
        if "problem" in record:
            continue
        by = record.get("probabilities", record["scores"])
        names = record.get("labels", sorted(by, key=lambda name: by[name] or 0.0, reverse=True)[:3])
        said = [
            f"{name} {by[name]:.2f}" for name in sorted(names, key=lambda name: by[name] or 0.0, reverse=True)
        ]
        yield f"{record['file']}: {', '.join(said) or 'none of the classes'}"


def _drawer(folder: Path) -> Callable[[Predictions], None]:
    """Return what writes a picture of each photo, with a map of each of its classes, to a folder."""
    from transferkit.files import as_file_name, fits_a_file, write_atomically
    from transferkit.scorer.pictures import plot_maps, require_matplotlib

    require_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)

    def draw(found: Predictions) -> None:
        for row, name in enumerate(found.ids):
            flags = [] if found.labels is None else found.labels[row].nonzero()[:, 0].tolist()
            classes = flags or [1 + int(found.scores[row, 1:].argmax())]
            maps = {found.class_names[k]: found.map(row, found.class_names[k]) for k in classes[:6]}
            figure = plot_maps(found.photos[found.places[row]].image, maps, caption=name)
            save = partial(figure.savefig, dpi=100, format="png")
            file = name if fits_a_file(name) else as_file_name(name)
            write_atomically(folder / f"{file}.png", save)

    return draw


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Leave out the warnings that photos were skipped: each is listed at the end."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="skipped")
        yield


_JOIN = """\
examples:
  transferkit join out.csv        of out.csv.1-of-8 to out.csv.8-of-8, which `transferkit predict --shard` wrote
  transferkit join features       of features.1-of-8 to features.8-of-8, which `transferkit fit --shard` filled

exit status: 0 done, 1 done but for photos that cannot be used, which are listed, 2 it could not be done"""


def _add_join(parser: argparse.ArgumentParser) -> None:
    words = "the table, lines or folder of features that the jobs were given"
    parser.add_argument("path", metavar="PATH", type=Path, help=words)


def _join(options: argparse.Namespace) -> int:
    from transferkit.features import join_caches
    from transferkit.finetune import join_predictions
    from transferkit.finetune.sharding import shards_beside

    parts = shards_beside(options.path)
    if not any(part.is_dir() for part in parts):
        found = join_predictions(options.path)
        _say_written(found)
        return _say_skipped(found)
    say(f"{options.path}: features of {join_caches(options.path, parts)} photos moved there")
    return 0


FIT = Command("fit", "fit a classifier of photos", _FIT, _add_fit, _fit)
PREDICT = Command("predict", "say what is in photos", _PREDICT, _add_predict, _predict)
JOIN = Command("join", "join what the shards of a job wrote", _JOIN, _add_join, _join)
