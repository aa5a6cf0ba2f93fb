"""How many photos are needed, and which layers should be trained: mean AP against either.

    python -m tests.benchmarks.learning_curves --data_dir DIR --weights FILE --out OUT --device cuda

All is done by RECOMMENDED on the photos' own split, tested on its 500 photos. Pretrained means its frozen backbone, as
in tests.benchmarks.recipes, on so many of the training photos, drawn anew for each seed. Scratch is AlexNet's five
convolutions with the same head and the same patches, nothing transferred and everything trained on pixels. What transfers
is measured likewise: all five convolutions are transferred, and those before the first that is trained stay frozen.
Training on pixels wants a GPU, or fewer patches, epochs and photos. Whatever was measured is kept in --out, and a run that
was stopped goes on after its last whole epoch.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.utils.data import Subset

import transferkit as tk
from tests.benchmarks.curves_plot import plot_curves
from tests.benchmarks.parts import digest
from tests.benchmarks.recipes import OnBackbone, Split, add_arguments, on_backbones, show_tables
from tests.benchmarks.table import Table
from transferkit.finetune import RECOMMENDED, FeatureSettings, Protocol, build_network

ALEXNET = "alexnet-convolutions"
CONVOLUTIONS = ("features.0", "features.3", "features.6", "features.8", "features.10")
NONE = len(CONVOLUTIONS)
RECIPE = digest(repr(RECOMMENDED).encode())  # in the names of parts, since what another came to is no use
SCRATCH_RATE = 3e-4  # of convolutions that know nothing; RECOMMENDED's own is for heads


def photos_of(on: OnBackbone, count: int, seed: int) -> Split:
    """Return the photos' own split with ``count`` of its training photos, drawn by ``seed``; all where there are no more."""
    split = on.photos.split(0)
    order = torch.randperm(len(split.train), generator=torch.Generator().manual_seed(seed))
    return Split([split.train[row] for row in sorted(order[:count].tolist())], split.test)


def pretrained(on: OnBackbone, count: int, seed: int) -> dict[str, float]:
    """Return what RECOMMENDED comes to with ``count`` photos."""
    name = f"pretrained_{RECIPE}_{count}_{seed}"
    return on.parts.figures(name, lambda: on.recipe(name, RECOMMENDED, photos_of(on, count, seed), seed))


def scratch(on: OnBackbone, count: int, seed: int) -> dict[str, float]:
    """Return the same for a network that knows nothing."""
    name = f"scratch_{RECIPE}_{count}_{seed}{how(on.options)}"
    measure = partial(trained_on_pixels, on, name, photos_of(on, count, seed), seed, first=0, transferred=False)
    return on.parts.figures(name, measure)


def transferred(on: OnBackbone, first: int, seed: int) -> dict[str, float]:
    """Return the same for transferred convolutions that are trained from the ``first`` on; ``NONE`` for the head alone."""
    photos = photos_of(on, on.options.depth_photos, seed)
    name = f"first_trained_{RECIPE}_{first}_{on.options.depth_photos}_{seed}{how(on.options)}"
    measure = partial(trained_on_pixels, on, name, photos, seed, first=first, transferred=True)
    return on.parts.figures(name, measure)


def how(options: argparse.Namespace) -> str:
    """Return what tells shortened training on pixels from that of the recipe, for the names of parts."""
    given = {name: getattr(options, name) for name in ("patches", "epochs", "test_pyramid_scales")}
    return "".join(f"_{name}_{value}" for name, value in given.items() if value)


def trained_on_pixels(
    on: OnBackbone, name: str, split: Split, seed: int, *, first: int, transferred: bool
) -> dict[str, float]:
    """Train AlexNet's convolutions from the ``first`` on, and a new head, on patches that are cut and resized.

    Returns:
        What the part of that name holds.
    """
    started = time.perf_counter()
    classifier = tk.SceneClassifier(
        ALEXNET if transferred else untrained(seed),
        on_pixels(on.options, transferred),
        weights=on.weights if transferred else None,
        from_scratch=not transferred,
        freeze=CONVOLUTIONS[first - 1] if first else None,
        features=FeatureSettings(method="exact", cache=False),
        seed=seed,
        num_workers=on.options.workers,
        device=on.device,
    )
    earlier = on.fitted(name, classifier, Subset(on.photos, split.train))
    if on.options.test_pyramid_scales:
        scales = tuple(on.options.test_pyramid_scales)
        classifier.features = FeatureSettings(method="shared", pyramid_scales=scales)
    scores = classifier.score(Subset(on.photos, split.test)).compute().cpu()
    seconds = earlier + time.perf_counter() - started
    return {"mean_ap": on.mean_ap(scores, split.test), "seconds": seconds}


def on_pixels(options: argparse.Namespace, transferred: bool) -> Protocol:
    """Return RECOMMENDED with nothing left to choose, and from scratch with a rate that suits convolutions."""
    count = options.patches or RECOMMENDED.patches_per_image
    protocol = RECOMMENDED.adjusted(
        patches_per_image=count,
        batch_size=count * RECOMMENDED.mix_images,
        learning_rate=None if transferred else SCRATCH_RATE,
        epochs=options.epochs,
    )
    return replace(protocol, features="exact", choice=None, train_backbone=True)


def untrained(seed: int) -> nn.Module:
    """Return the network with first weights as a network without normalization needs them."""
    torch.manual_seed(seed)
    network = build_network(ALEXNET)
    network.model.preprocessing = network.preprocessing.preprocessing
    for layer in network.model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return network.model


def main() -> None:
    """Run the benchmark."""
    options = parse_arguments()
    every = {on.backbone: on for on in on_backbones(options)}
    seeds = range(options.seeds)
    tables = [curve_table(options, every, seeds)] if options.pretrained or options.scratch else []
    alexnet = every.get(ALEXNET)
    if alexnet and options.first_trained:
        tables.append(depth_table(options, alexnet, seeds))
    show_tables(options, tables)


def curve_table(options: argparse.Namespace, every: dict[str, OnBackbone], seeds: range) -> Table:
    """Return mean AP against the number of photos."""
    curves = {
        f"{name}, pretrained": partial(pretrained, on) for name, on in every.items() if options.pretrained
    }
    if ALEXNET in every and options.scratch:
        curves[f"{ALEXNET}, scratch"] = partial(scratch, every[ALEXNET])
    found = {
        name: {count: [measure(count, seed)["mean_ap"] for seed in seeds] for count in options.counts}
        for name, measure in curves.items()
    }
    columns = {"photos": "", **{f"{name}, mAP, %": ".2f" for name in curves}}
    table = Table(f"Mean AP against the number of training photos, {len(seeds)} seeds", columns)
    for count in options.counts:
        table.add(str(count), *(curve[count] for curve in found.values()))
    picture = options.out / "pictures/learning_curves.png"
    plot_curves(found, picture, xlabel="training photos", log=True)
    table.pictures.append(f"pictures/{picture.name}")
    return table


def depth_table(options: argparse.Namespace, on: OnBackbone, seeds: range) -> Table:
    """Return mean AP against the first layer that is trained."""
    table = Table(
        f"Mean AP against the first layer trained, {options.depth_photos} photos, {len(seeds)} seeds",
        {"index of the first layer trained": "", "layer": "", "mAP, %": ".2f", "minutes": ".1f"},
    )
    found: dict[int, list[float]] = {}
    for first in range(NONE + 1):
        runs = [transferred(on, first, seed) for seed in seeds]
        found[first] = [run["mean_ap"] for run in runs]
        layer = "the head alone" if first == NONE else CONVOLUTIONS[first]
        table.add(str(first), layer, found[first], [run["seconds"] / 60 for run in runs])
    picture = options.out / "pictures/first_layer_trained.png"
    plot_curves(
        {ALEXNET: found}, picture, xlabel="index of the first layer trained (5: the head alone)", log=False
    )
    table.pictures.append(f"pictures/{picture.name}")
    return table


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[50, 100, 200, 500, 1000], help="of training photos"
    )
    parser.add_argument(
        "--depth_photos", type=int, default=1000, help="of training photos, for which layers to train"
    )
    parser.add_argument("--patches", type=int, help="of a photo and epoch, on pixels (default RECOMMENDED's)")
    parser.add_argument("--epochs", type=int, help="on pixels (default RECOMMENDED's)")
    parser.add_argument("--test_pyramid_scales", type=float, nargs="+",
                        help="on pixels, test on features read from maps at these sizes (default: patches are cut)")  # fmt: skip
    parser.add_argument("--pretrained", action=argparse.BooleanOptionalAction, default=True,
                        help="also the curves of pretrained networks")  # fmt: skip
    parser.add_argument("--scratch", action=argparse.BooleanOptionalAction, default=True,
                        help="also the curve of a network that knows nothing")  # fmt: skip
    parser.add_argument("--first_trained", action=argparse.BooleanOptionalAction, default=True,
                        help="also which layers to train")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    main()
