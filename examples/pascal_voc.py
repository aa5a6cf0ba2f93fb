"""Turn a network trained on single objects into one that recognizes the objects in scenes.

The recipe of Oquab et al. (CVPR 2014), as Nervana's neon built it: take the layers of a pretrained AlexNet, put
adaptation layers on top, train on multiscale patches of Pascal VOC photos, and score a photo by the sum over its
patches of probability^5.

    python examples/pascal_voc.py --demo           no network, no files: digits in scenes
    python examples/pascal_voc.py                  VOC2007 and AlexNet's weights are downloaded; not measured
    python examples/pascal_voc.py --protocol recommended --model efficientnet-lite0    what worked best, in minutes
    python examples/pascal_voc.py --model_file results/run.pt          go on with a run that was stopped
    python examples/pascal_voc.py --model_file results/run.pt -e 0     only test it

The demo ends, after one and a half to four minutes on two cores, with

    mAP: from scratch 34.5%, pretrained 68.2%

or, where a processor rounds otherwise, near that (34.7 and 65.1 on another).

Real photos, 300 for training and 150 for test, with AlexNet's five convolutions, 64 patches each and 3 epochs reach
an mAP of 36.1 where the same from scratch reaches 12.5. docs/pascal_voc.md has the command, and what a run leaves;
docs/experiments.md has what --protocol recommended reaches.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import transferkit as tk
from transferkit.datasets import (
    DEMO_CLASSES,
    VOC_CLASSES,
    VOCDataset,
    fetch_voc,
    write_demo_devkit,
)
from transferkit.errors import OutputError
from transferkit.features import FeatureCache, FeatureImages, PatchFeatures, UnsplittableError
from transferkit.finetune import (
    AS_THEY_ARE,
    DEMO,
    NETWORKS,
    LoopSettings,
    Network,
    Optimization,
    Protocol,
    Run,
    RunReport,
    Stopwatch,
    build_network,
    build_report,
    build_run,
    choose_device,
    choose_on_held_out,
    fill_scorer,
    first_on_machine,
    fit,
    fit_on_features,
    frozen_features,
    head_features,
    is_first,
    look_at_patches,
    process_group,
    read_run,
    require_writable,
    small_alexnet,
    train_on_digits,
    trains_transferred,
    transferred_parameters,
    use_huge_pages,
    write_convergence,
    write_results,
)
from transferkit.finetune import PROTOCOLS as PUBLISHED
from transferkit.preprocessing import IMAGENET
from transferkit.scorer import ClassificationResult, ImageScorer, PatchLog
from transferkit.scorer.pictures import require_matplotlib
from transferkit.transfer import Predicate

PROTOCOLS = {**PUBLISHED, "demo": DEMO}


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    use_huge_pages()
    try:
        args = parse_arguments(argv)
        with process_group(choose_device(args.backend)):
            demo(args) if args.demo else run(args)
    except (tk.TransferKitError, OSError) as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace, compared_with: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train and test as ``args`` say; return the metrics, which are also written to ``args.results``.

    Of several processes, the first returns them.

    ``compared_with`` holds the metrics of other runs by name, for the report.
    """
    stopwatch, device = Stopwatch(), choose_device(args.backend)
    protocol = protocol_of(args)
    save_path = check_outputs(args)
    saved = read_run(args.model_file) if args.model_file else None
    print(protocol)

    # Data: photos, and how their patches are laid out, labeled, chosen and cut.
    test_set, test_patches = patches_of(args, protocol, "test")
    train_set, train_patches = patches_of(args, protocol, "train") if protocol.epochs else (None, None)
    stopwatch.lap("read data")

    # Model: its classification layer is replaced by the adaptation layers.
    torch.manual_seed(args.rng_seed)
    network = build_network(args.model)
    print(network)
    head = tk.replace_head(network.model, lambda width: protocol.head(width, len(test_set.class_names)))
    before_head = ~tk.by_name(f"{head.name}.*")
    model = network.model.to(device)

    # Transfer: every layer before the adaptation layers comes from the pretrained network, or all from a saved run.
    moved = saved["transfer"] if saved else None if args.from_scratch else transfer(args, network, before_head)
    frozen = freeze(args, protocol, model, before_head)
    steps = math.ceil(len(train_patches) / args.accumulate) if train_patches else 1
    state = new_run(args, protocol, network, frozen, moved, steps)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(f"{trained:,} parameters to train: {optimization_of(protocol, model, moved)}")
    if saved:
        state.restore(saved)
        print(f"{args.model_file}: {state.epoch} epochs done")
    stopwatch.lap("build model")

    # Train, and save after each epoch what a later call can go on from.
    def after_epoch(state: Run) -> None:
        if args.eval_freq and state.epoch % args.eval_freq == 0:
            mean_ap = test(args, protocol, state, test_set, test_patches)[0].mean_ap()
            state.history[-1] = dataclasses.replace(state.history[-1], mean_ap=mean_ap)
        due = args.serialize and (state.epoch % args.serialize == 0 or state.epoch == protocol.epochs)
        if due and is_first():
            state.save(save_path, keep=args.history)
        print(state.history[-1], flush=True)

    if state.epoch < protocol.epochs:
        loop, how = loop_settings(args), {"after_epoch": after_epoch, "progress": is_first()}
        wanted = args.features or ("cached" if frozen else "exact")
        ready = None if wanted == "exact" else cached_features(args, protocol, state, train_set)
        if ready and protocol.choice and not saved:
            protocol = choose(args, protocol, state, *ready)
            state = new_run(args, protocol, network, frozen, moved, steps)
        if state.sampler_state:
            train_patches.load_state_dict(state.sampler_state)
        if ready:  # what frozen layers give is computed once, and only the rest runs in each epoch
            cache, rest = ready
            cached_patches = stream(args, protocol, cache, "train")
            cached_patches.load_state_dict(train_patches.state_dict())
            fit_on_features(state, rest, cached_patches, protocol.epochs, loop=loop, **how)
        else:
            fit(state, train_patches, protocol.epochs, loop=loop, **how)
        if loop.profile and is_first():
            print((loop.profile / "profile.txt").read_text(encoding="utf-8"))
    stopwatch.lap("train")

    # Test: score every photo for every class by the sum over its patches of probability^exponent, and rank them.
    # A report shows where in the photos the classes are seen, for which it needs every patch's probabilities.
    result, log = test(args, protocol, state, test_set, test_patches, keep_patches=args.report)
    stopwatch.lap("test")
    print(result)

    # Report: of several processes, the first writes it.
    if not is_first():
        return {}
    metrics = write_results(args.results, state, result, seconds=stopwatch.laps, image_set=args.test_set)
    if args.report:
        photos = "digits in scenes" if args.demo else f"VOC{args.year}"
        title = f"{args.model}, {protocol.name}, {photos} {args.test_set}"
        seen = look_at_patches(train_patches, train_set) if train_patches else None
        report = RunReport.of(
            metrics, result, log, test_set, title=title, compared_with=compared_with, patches=seen
        )
        build_report(report, progress=True).write(args.results / "report.html")
    print(stopwatch)
    print(f"mAP {result.mean_ap():.2%} ({result.rule}); results are in {args.results}")
    return metrics


def protocol_of(args: argparse.Namespace) -> Protocol:
    """Return the recipe with what the command line, or an earlier run's choice on held-out photos, changes in it."""
    protocol = PROTOCOLS[args.protocol]
    if args.chosen:
        protocol = protocol.decided(*args.chosen)
    return protocol.adjusted(args.patches_per_image, args.batch_size, args.learning_rate, args.epochs)


def check_outputs(args: argparse.Namespace) -> Path:
    """Make sure, before any long work, that the run and its results can be written; return the run's path."""
    save_path = args.save_path or args.results / "run.pt"
    if args.report:
        require_matplotlib()
    if is_first():
        require_writable(args.results / "metrics.json")
        require_writable(save_path)
    return save_path


def patches_of(
    args: argparse.Namespace, protocol: Protocol, mode: Literal["train", "test"]
) -> tuple[VOCDataset, tk.MultiscaleSampler]:
    """Read the photos to train or test on, downloaded where there are none, and return them with their patches."""
    image_set, max_images = {
        "train": (args.image_set, args.max_train_imgs),
        "test": (args.test_set, args.max_test_imgs),
    }[mode]
    photos = VOCDataset(
        args.data_dir or fetch_voc(args.year, (args.image_set, args.test_set), progress=True),
        args.year,
        image_set,
        max_images=max_images,
        class_names=args.class_names,
        subtract_one=protocol.subtract_one,
        progress=True,
    )
    patches = stream(args, protocol, photos, mode)
    print(f"{image_set}: {len(photos)} photos, {len(patches)} minibatches")
    return photos, patches


def stream(
    args: argparse.Namespace, protocol: Protocol, data: Any, mode: Literal["train", "test"]
) -> tk.MultiscaleSampler:
    """Return the recipe's minibatches of photos, or of features of them."""
    device = choose_device(args.backend)
    return protocol.sampler(data, mode=mode, seed=args.rng_seed, num_workers=args.num_workers, device=device)


def feature_settings(args: argparse.Namespace, protocol: Protocol) -> dict[str, Any]:
    """Return how patches go through frozen layers: one by one, or shared at some sizes of the photo."""
    method = args.features if args.features in ("exact", "shared") else protocol.features
    pyramid_scales = protocol.pyramid_scales if args.pyramid_scales is None else args.pyramid_scales
    return {"method": method, "pyramid_scales": pyramid_scales, "amp": args.amp, "fold": True}


def cache_of(
    args: argparse.Namespace, protocol: Protocol, features: PatchFeatures, photos: VOCDataset
) -> FeatureCache:
    """Compute features of all patches of the photos, or find them computed."""
    limit = None if args.cache_limit is None else int(args.cache_limit * 1e9)
    folder = args.cache_dir or args.results / "features"
    cache = FeatureCache(folder, features, photos, grid=protocol.grid, limit=limit)
    print(f"features of the frozen layers: {cache.size()}", flush=True)
    cache.fill(num_workers=args.num_workers, progress=is_first())
    return cache


def cached_features(
    args: argparse.Namespace, protocol: Protocol, state: Run, photos: VOCDataset
) -> tuple[FeatureCache, nn.Module] | None:
    """Compute what the frozen layers give for all patches, once; return it, and what is trained on it.

    ``None`` where that cannot be done, or does not fit: then every patch goes through the whole network.
    """
    try:
        features, rest = frozen_features(state, protocol, **feature_settings(args, protocol))
        return cache_of(args, protocol, features, photos), rest
    except (UnsplittableError, OutputError) as error:
        if args.features == "cached":
            raise
        print(f"every patch goes through the whole network in every epoch: {error}")
        return None


def choose(
    args: argparse.Namespace, protocol: Protocol, state: Run, cache: FeatureCache, rest: nn.Module
) -> Protocol:
    """Choose on held-out training photos what the recipe leaves open; return the recipe with that decided."""
    chosen = choose_on_held_out(
        rest,
        cache,
        protocol,
        optimization_of(protocol, state.model, state.transfer),
        transferred=transferred_parameters(state.model, state.transfer),
        seed=args.rng_seed,
        num_workers=args.num_workers,
        loop=loop_settings(args),
        progress=is_first(),
    )
    print(chosen, flush=True)
    args.chosen = [chosen.epochs, chosen.exponent]
    torch.manual_seed(args.rng_seed)
    return protocol.decided(chosen.epochs, chosen.exponent)


def transfer(args: argparse.Namespace, network: Network, before_head: Predicate) -> dict[str, Any]:
    """Move every layer but the adaptation layers from the pretrained weights; return the report."""
    checkpoint = network.checkpoint(args.weights)
    move = tk.WeightTransfer(checkpoint, select=before_head, allow_missing=args.allow_missing)
    report = move.apply(network.model)
    print(report)
    return report.to_dict()


def freeze(
    args: argparse.Namespace, protocol: Protocol, model: nn.Module, before_head: Predicate
) -> tuple[str, ...]:
    """Freeze up to and including --freeze, or what the protocol does not train; return the layers' names."""
    if args.from_scratch:
        return ()
    if args.freeze:
        return tk.freeze(model, ~tk.after(args.freeze))
    return () if protocol.train_backbone else tk.freeze(model, before_head)


def new_run(
    args: argparse.Namespace,
    protocol: Protocol,
    network: Network,
    frozen: tuple[str, ...],
    moved: dict[str, Any] | None,
    steps_per_epoch: int,
) -> Run:
    """Put the model together with its optimizer and schedule."""
    model = network.model
    return build_run(
        model,
        protocol,
        optimization_of(protocol, model, moved),
        preprocessing=network.preprocessing.preprocessing,
        steps_per_epoch=steps_per_epoch,
        transferred=transferred_parameters(model, moved),
        settings=settings_of(args),
        frozen=frozen,
        transfer=moved,
    )


def optimization_of(protocol: Protocol, model: nn.Module, moved: dict[str, Any] | None) -> Optimization:
    """Return how to train: at low rates only where they protect something."""
    return protocol.optimization(from_scratch=not trains_transferred(model, moved))


def test(
    args: argparse.Namespace,
    protocol: Protocol,
    state: Run,
    test_set: VOCDataset,
    patches: tk.MultiscaleSampler,
    keep_patches: bool = False,
) -> tuple[ClassificationResult, ImageScorer | PatchLog]:
    """Score the photos and compare the scores with the annotations; return also what collected the patches."""
    size = len(test_set), len(test_set.class_names)
    empty: ImageScorer | PatchLog = (
        PatchLog(*size, protocol.exponent, protocol.reduction)
        if keep_patches
        else protocol.scorer(*size, device=state.device, validate=False)
    )
    model, preprocessing = state.tested_model, state.preprocessing
    settings = feature_settings(args, protocol)
    if settings["method"] == "shared":
        keep = args.cache_dir and head_features(state.model, preprocessing, protocol, **settings)[0].frozen
        features, model = head_features(model, preprocessing, protocol, **settings)
        data = cache_of(args, protocol, features, test_set) if keep else FeatureImages(test_set, features)
        patches, preprocessing = stream(args, protocol, data, "test"), AS_THEY_ARE
    scorer = fill_scorer(
        model,
        patches,
        empty,
        preprocessing,
        objective=state.objective,
        loop=loop_settings(args),
        progress=is_first(),
    )
    truth = test_set.presence()
    result = tk.evaluate(
        scorer.compute().cpu(),
        truth.present,
        truth.difficult_only,
        class_names=test_set.class_names,
        image_ids=test_set.ids,
        rule=protocol.ap_rule,
        bootstrap=1000 if keep_patches else 0,
    )
    return result, scorer


def demo(args: argparse.Namespace) -> None:
    """Make all that the recipe needs from scikit-learn's handwritten digits, then run it twice.

    The source task is to tell single digits apart, the target task to say which digits a scene shows.
    """
    folder = args.results
    args.data_dir, args.class_names = folder / "data", DEMO_CLASSES
    args.protocol, args.model, args.eval_freq, args.num_workers = "demo", "alexnet-small", 1, 0
    args.weights = folder / "single_digits.pt"
    with first_on_machine() as first:
        if first:
            write_demo_devkit(args.data_dir, seed=args.rng_seed, progress=True)
            torch.manual_seed(args.rng_seed)
            source = small_alexnet(10).to(choose_device(args.backend))
            loss = train_on_digits(source, IMAGENET, seed=args.rng_seed, progress=True)
            torch.save(source.state_dict(), args.weights)
            print(f"single digits: loss {loss:.3f}")
    metrics: dict[str, dict[str, Any]] = {}
    for name, from_scratch in (("from scratch", True), ("pretrained", False)):
        print(f"\n== {name} ==")
        args.from_scratch, args.results = from_scratch, folder / name.replace(" ", "_")
        args.report = not from_scratch and find_spec("matplotlib") is not None
        metrics[name] = run(args, metrics)
    if not is_first():
        return
    curves = write_convergence(folder / "convergence.png", {name: m["history"] for name, m in metrics.items()})
    print("\nmAP: " + ", ".join(f"{name} {m['mean_ap']:.1%}" for name, m in metrics.items()))
    print(
        f"the curves are in {curves}, maps and photos in {args.results / 'report.html'}"
        if curves
        else "for curves, maps and a report: pip install matplotlib"
    )


def loop_settings(args: argparse.Namespace) -> LoopSettings:
    """Return how training and testing run."""
    profile = args.results / "profile" if args.profile else None
    return LoopSettings(args.amp, args.channels_last, args.compile, args.accumulate, profile)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a resumed run takes from its checkpoint unless the command line says otherwise."""
    left_out = {
        *("demo", "model_file", "epochs", "results", "save_path", "report"),
        *("backend", "num_workers", "amp", "channels_last", "compile", "profile", "cache_dir", "cache_limit"),
    }
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name not in left_out
    }


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; with --model_file, what it does not say comes from that run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument_group("data").add_argument
    add("--data_dir", type=Path, help="folder that holds VOCdevkit; downloaded and cached unless given")
    add("--year", default="2007", help="2007 or 2012 (default 2007)")
    add("--image_set", default="trainval", help="photos to train on (default trainval)")
    add("--test_set", default="test", help="photos to test on (default test)")
    add(
        "--classes",
        dest="class_names",
        type=class_list,
        default=VOC_CLASSES,
        metavar="A,B,C",
        help="(default VOC's)",
    )
    add("--max_train_imgs", type=positive, metavar="N", help="train on the first N photos")
    add("--max_test_imgs", type=positive, metavar="N", help="test on the first N photos")
    add("--demo", action="store_true", help="use handwritten digits in scenes; needs no file")

    add = parser.add_argument_group("recipe").add_argument
    add("--protocol", choices=PROTOCOLS, default="neon2016", help="(default neon2016)")
    add("-e", "--epochs", type=int, help="total number of epochs; 0 only tests (default the protocol's)")
    add("-z", "--batch_size", type=positive, help="patches per minibatch")
    add("--patches_per_image", type=positive, metavar="P", help="patches per photo")
    add("--learning_rate", type=float, help="at the start")
    add("-r", "--rng_seed", type=int, default=13, help="seed of every random choice (default 13)")

    add = parser.add_argument_group("network").add_argument
    add(
        "--model",
        default="alexnet",
        metavar="NAME",
        help=f"{', '.join(NETWORKS)}, or module:factory (default alexnet)",
    )
    add("--weights", type=Path, help="pretrained weights (default the model's own; AlexNet's are downloaded)")
    add(
        "--allow_missing",
        nargs="*",
        default=(),
        metavar="LAYER",
        help="what the weights may lack: 'classifier.*'",
    )
    add("--from_scratch", action="store_true", help="transfer nothing, train everything")
    add("--freeze", metavar="LAYER", help="train only what comes after this layer")

    add = parser.add_argument_group("files").add_argument
    add("--results", type=Path, default=Path("results"), metavar="DIR", help="(default results)")
    add("--save_path", type=Path, help="where the run is saved (default DIR/run.pt)")
    add("--serialize", type=int, default=1, metavar="N", help="save every N epochs; 0: never (default 1)")
    add("--history", type=positive, default=1, metavar="N", help="keep the last N epochs (default 1)")
    add("--model_file", type=Path, help="go on with this run; with -e 0 only test it")
    add(
        "--eval_freq", type=int, default=0, metavar="N", help="also test every N epochs (default 0: at the end)"
    )
    add("--report", action="store_true", help="also write report.html: tables, curves, maps, hits and misses")

    add = parser.add_argument_group("speed").add_argument
    add("-b", "--backend", "--device", metavar="DEVICE", help="cpu, gpu or cuda:N (default gpu if any)")
    add("--num_workers", type=int, default=min(4, os.cpu_count() or 1), help="processes that decode photos")
    add("--amp", action=argparse.BooleanOptionalAction, help="compute in bfloat16 (default on a GPU only)")
    add("--channels_last", action=argparse.BooleanOptionalAction, help="(default on a GPU only)")
    add("--compile", action="store_true", help="compile the network first, which takes a minute")
    add(
        "--accumulate", type=positive, default=1, metavar="N", help="step after every N minibatches (default 1)"
    )
    add("--features", choices=["exact", "shared", "cached"],
        help="exact: each patch through the whole network; shared: read from maps of the whole photo, in "
        "training and test; cached: train on what frozen layers give, computed once (the default then)")  # fmt: skip
    add("--pyramid_scales", type=number_or_sizes, metavar="N|SIZES",
        help="at how many sizes a photo is shown to the network when shared, or at which: 1,1.4,2 times the size of "
        "a patch on its shorter side (default the protocol's, whose largest takes half of the time)")  # fmt: skip
    add("--cache_dir", type=Path, metavar="DIR", help="where features are cached (default in --results)")
    add("--cache_limit", type=float, metavar="GB", help="the most that a cache may take (default what is free)")
    add("--profile", action="store_true", help="show where the time of the first steps goes; see DIR/profile")

    parser.set_defaults(chosen=None)
    args = parser.parse_args(argv)
    if args.model_file:
        parser.set_defaults(**read_run(args.model_file)["settings"])
        args = parser.parse_args(argv)
    for name in ("data_dir", "weights"):
        value = getattr(args, name)
        setattr(args, name, value and Path(value))
    return args


def positive(text: str) -> int:
    """Read a whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def number_or_sizes(text: str) -> int | tuple[float, ...]:
    """Read a whole number above zero, or sizes separated by commas."""
    return tuple(float(size) for size in text.split(",") if size) if "," in text else positive(text)


def class_list(text: str) -> tuple[str, ...]:
    """Read class names separated by commas, and put the background before them."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return names if names[:1] == ("background",) else ("background", *names)


if __name__ == "__main__":
    sys.exit(main())
