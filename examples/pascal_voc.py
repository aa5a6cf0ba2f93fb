"""Turn a network trained on single objects into one that recognises the objects in scenes.

The recipe of Oquab et al. (CVPR 2014), as Nervana's neon built it: take the layers of a pretrained AlexNet, put
adaptation layers on top, train on multiscale patches of Pascal VOC photos, and score a photo by the sum over its
patches of probability^5.

    python examples/pascal_voc.py --demo           no network, no files: digits in scenes
    python examples/pascal_voc.py                  VOC2007 and AlexNet's weights are downloaded; not measured
    python examples/pascal_voc.py --model_file results/run.pt          go on with a run that was stopped
    python examples/pascal_voc.py --model_file results/run.pt -e 0     only test it

The demo ends, after a minute and a half on two cores, with

    mAP: from scratch 34.5%, pretrained 68.2%

Real photos, 300 for training and 150 for test, with AlexNet's five convolutions, 64 patches each and 3 epochs reach
an mAP of 36.1 where the same from scratch reaches 12.5. docs/pascal_voc.md has the command, and what a run leaves.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import transferkit as tk
from transferkit.alexnet import AlexNet
from transferkit.datasets import (
    DEMO_CLASSES,
    VOC_CLASSES,
    VOCDataset,
    demo_source_digits,
    fetch_alexnet_weights,
    fetch_voc,
    write_demo_devkit,
)
from transferkit.errors import ArgumentError
from transferkit.finetune import (
    Run,
    RunReport,
    build_optimizer,
    build_report,
    build_schedule,
    fit,
    look_at_patches,
    read_run,
    require_writable,
    score_images,
    write_convergence,
    write_results,
)
from transferkit.preprocessing import IMAGENET
from transferkit.protocols import PROTOCOLS as PUBLISHED
from transferkit.protocols import Optimization, Protocol
from transferkit.scorer import ClassificationResult, ImageScorer, PatchLog
from transferkit.scorer.pictures import require_matplotlib
from transferkit.transfer import TransferReport

# The layer of AlexNet that tells ImageNet's classes apart; the adaptation layers take its place.
CLASSIFICATION_LAYER = "classifier.6"

MODELS: dict[str, dict[str, Any]] = {
    "alexnet": {},
    "alexnet-small": {
        "channels": (16, 32, 48, 48, 32),
        "hidden": 128,
        "stem": (5, 1, 2),
        "pooled": 3,
        "drop_rate": 0.1,
        "kaiming": True,
    },
}

# The neon recipe for pictures of a hundred pixels: small patches, a small head, and few epochs.
SMALL_STEPS = Optimization(3e-3, momentum=0.9, weight_decay=5e-4, steps=(3,), factors=(0.1,))
DEMO = dataclasses.replace(
    tk.NEON2016,
    name="demo",
    patch_size=32,
    patches_per_image=64,
    hidden=(128,),
    hidden_std=0.05,
    head_std=0.05,
    pretrained=SMALL_STEPS,
    scratch=SMALL_STEPS,
    epochs=4,
)
PROTOCOLS = {**PUBLISHED, "demo": DEMO}


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    try:
        args = parse_arguments(argv)
        demo(args) if args.demo else run(args)
    except (tk.TransferKitError, OSError) as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace, compared_with: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train and test as ``args`` say; return the metrics, which are also written to ``args.results``.

    ``compared_with`` holds the metrics of other runs by name, for the report.
    """
    stopwatch = Stopwatch()
    device = choose_device(args.backend)
    protocol = adjusted(PROTOCOLS[args.protocol], args)
    epochs = protocol.epochs if args.epochs is None else args.epochs
    save_path = require_writable(args.save_path or args.results / "run.pt")
    require_writable(args.results / "metrics.json")
    if args.report:
        require_matplotlib()
    saved = read_run(args.model_file) if args.model_file else None
    print(protocol)

    # Training set and test set: photos, and how their patches are laid out, labeled, chosen and cut.
    streaming = {"seed": args.rng_seed, "num_workers": args.num_workers, "device": device}
    test_set = photos(args, protocol, args.test_set, args.max_test_imgs)
    test_patches = protocol.sampler(test_set, mode="test", **streaming)
    print(f"test set: {len(test_set)} photos, {len(test_patches)} minibatches")
    if epochs:
        train_set = photos(args, protocol, args.image_set, args.max_train_imgs)
        train_patches = protocol.sampler(train_set, mode="train", **streaming)
        print(f"training set: {len(train_set)} photos, {len(train_patches)} minibatches")
    stopwatch.lap("read data")

    # Model: AlexNet, its classification layer replaced by the adaptation layers.
    torch.manual_seed(args.rng_seed)
    num_classes = len(test_set.class_names)
    model = AlexNet(**MODELS[args.model])
    tk.replace_head(model, lambda width: protocol.head(width, num_classes), name=CLASSIFICATION_LAYER)
    model.to(device)

    # Transfer: every layer before the adaptation layers comes from the pretrained network, or all from a saved run.
    moved = saved["transfer"] if saved else None if args.from_scratch else transfer(args, model)
    frozen = freeze(args, protocol, model)
    optimization = protocol.optimization(from_scratch=not trains_transferred(model, moved))
    optimizer = build_optimizer(model.parameters(), optimization)
    schedule = build_schedule(optimizer, optimization)
    state = Run(model, optimizer, schedule, IMAGENET, settings_of(args), frozen, moved)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    print(f"{trained:,} parameters to train: {optimization}")
    if saved:
        state.restore(saved)
        print(f"{args.model_file}: {state.epoch} epochs done")
    stopwatch.lap("build model")

    # Train, and save what a later call can go on from.
    def new_scorer() -> ImageScorer:
        return protocol.scorer(len(test_set), num_classes, device=device)

    def after_epoch(state: Run) -> None:
        if args.eval_freq and state.epoch % args.eval_freq == 0:
            mean_ap = test(args, state, protocol, test_set, test_patches, new_scorer()).mean_ap()
            state.history[-1] = dataclasses.replace(state.history[-1], mean_ap=mean_ap)
        if args.serialize and (state.epoch % args.serialize == 0 or state.epoch == epochs):
            state.save(save_path, keep=args.history)
        print(state.history[-1], flush=True)

    if state.epoch < epochs:
        if state.sampler_state:
            train_patches.load_state_dict(state.sampler_state)
        fit(state, train_patches, epochs, amp=args.amp, after_epoch=after_epoch, progress=True)
    stopwatch.lap("train")

    # Test. A report shows where in the photos the classes are seen: it needs every patch's probabilities.
    log = PatchLog(len(test_set), num_classes, protocol.exponent, protocol.reduction)
    result = test(args, state, protocol, test_set, test_patches, log if args.report else new_scorer())
    stopwatch.lap("test")
    print(result)
    metrics = write_results(args.results, state, result, seconds=stopwatch.laps)
    if args.report:
        name = "from scratch" if args.from_scratch else "pretrained"
        runs = {name: metrics, **(compared_with or {})}
        report = RunReport.of(
            state,
            f"{args.model}, {protocol.name}, VOC{args.year} {args.test_set}",
            result,
            log,
            test_set,
            histories={name: metrics["history"] for name, metrics in runs.items()},
            seconds=stopwatch.laps,
            patches=look_at_patches(train_patches, train_set) if epochs else None,
        )
        build_report(report, progress=True).write(args.results / "report.html")
    print(f"mAP {result.mean_ap():.2%} ({result.rule}); results are in {args.results}")
    return metrics


def test(
    args: argparse.Namespace,
    state: Run,
    protocol: Protocol,
    test_set: VOCDataset,
    patches: tk.MultiscaleSampler,
    scorer: ImageScorer | PatchLog,
) -> ClassificationResult:
    """Score every photo for every class by the sum over its patches of probability^exponent, and rank them."""
    scores = score_images(state.model, patches, scorer, state.preprocessing, amp=args.amp, progress=True)
    truth = test_set.presence()
    return tk.evaluate(
        scores.cpu(),
        truth.present,
        truth.difficult_only,
        class_names=test_set.class_names,
        rule=protocol.ap_rule,
        bootstrap=1000 if args.report else 0,
    )


def photos(args: argparse.Namespace, protocol: Protocol, image_set: str, max_images: int | None) -> VOCDataset:
    """Read one image set of a VOCdevkit, which is downloaded where there is none."""
    return VOCDataset(
        args.data_dir or fetch_voc(args.year, (args.image_set, args.test_set), progress=True),
        args.year,
        image_set,
        max_images=max_images,
        class_names=args.class_names,
        subtract_one=protocol.subtract_one,
        progress=True,
    )


def transfer(args: argparse.Namespace, model: AlexNet) -> dict[str, Any]:
    """Move every layer before the adaptation layers from the pretrained weights; return the report."""
    checkpoint = tk.read_checkpoint(args.weights or fetch_alexnet_weights(progress=True))
    before_head = tk.before(CLASSIFICATION_LAYER)
    report = tk.WeightTransfer(checkpoint, select=before_head, allow_missing=args.allow_missing).apply(model)
    print(report)
    return report.to_dict()


def freeze(args: argparse.Namespace, protocol: Protocol, model: AlexNet) -> tuple[str, ...]:
    """Freeze up to and including --freeze, or what the protocol does not train; return the layers' names."""
    if args.from_scratch:
        return ()
    if args.freeze:
        return tk.freeze(model, ~tk.after(args.freeze))
    return () if protocol.train_trunk else tk.freeze(model, tk.before(CLASSIFICATION_LAYER))


def demo(args: argparse.Namespace) -> None:
    """Make all that the recipe needs from scikit-learn's handwritten digits, then run it twice.

    The source task is to tell single digits apart, the target task to say which digits a scene shows.
    """
    folder = args.results
    write_demo_devkit(folder / "data", seed=args.rng_seed, progress=True)
    args.data_dir, args.class_names = folder / "data", DEMO_CLASSES
    args.protocol, args.model, args.eval_freq, args.num_workers = "demo", "alexnet-small", 1, 0
    args.weights = train_on_single_digits(folder / "single_digits.pt", args)
    metrics: dict[str, dict[str, Any]] = {}
    for name, from_scratch in (("from scratch", True), ("pretrained", False)):
        print(f"\n== {name} ==")
        args.from_scratch, args.results = from_scratch, folder / name.replace(" ", "_")
        args.report = not from_scratch and find_spec("matplotlib") is not None
        metrics[name] = run(args, metrics)
    curves = write_convergence(folder / "convergence.png", {name: m["history"] for name, m in metrics.items()})
    print("\nmAP: " + ", ".join(f"{name} {m['mean_ap']:.1%}" for name, m in metrics.items()))
    print(
        f"the curves are in {curves}, maps and photos in {args.results / 'report.html'}"
        if curves
        else "for curves, maps and a report: pip install matplotlib"
    )


def train_on_single_digits(path: Path, args: argparse.Namespace) -> Path:
    """Train the small AlexNet to tell single digits apart, and save its weights: the demo's source task."""
    device = choose_device(args.backend)
    torch.manual_seed(args.rng_seed)
    images, labels = demo_source_digits(seed=args.rng_seed)  # (N, 3, 32, 32) uint8, (N,)
    images, labels = images.to(device), labels.to(device)
    model = AlexNet(10, **MODELS["alexnet-small"]).to(device)
    epochs, batch_size = 8, 32
    batches = len(images) // batch_size
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.5e-3, total_steps=epochs * batches, pct_start=0.2
    )
    for epoch in range(epochs):
        order = torch.randperm(len(images))
        for chosen in order[: batches * batch_size].split(batch_size):
            loss = torch.nn.functional.cross_entropy(model(IMAGENET(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"single digits: epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}", flush=True)
    torch.save(model.state_dict(), path)
    return path


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a resumed run takes from its checkpoint unless the command line says otherwise."""
    left_out = {
        *("demo", "model_file", "epochs", "backend", "num_workers", "amp"),
        *("results", "save_path", "report"),
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
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data_dir", type=Path, help="folder that holds VOCdevkit; downloaded and cached unless given"
    )
    data.add_argument("--year", default="2007", help="2007 or 2012 (default 2007)")
    data.add_argument("--image_set", default="trainval", help="photos to train on (default trainval)")
    data.add_argument("--test_set", default="test", help="photos to test on (default test)")
    data.add_argument("--classes", dest="class_names", type=class_list, default=VOC_CLASSES, metavar="A,B,C",
                      help="class names of data of your own (default VOC's twenty)")  # fmt: skip
    data.add_argument("--max_train_imgs", type=positive, metavar="N", help="train on the first N photos")
    data.add_argument("--max_test_imgs", type=positive, metavar="N", help="test on the first N photos")
    data.add_argument("--demo", action="store_true", help="use handwritten digits in scenes; needs no file")

    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--protocol", choices=PROTOCOLS, default="neon2016", help="(default neon2016)")
    recipe.add_argument(
        "-e", "--epochs", type=int, help="total number of epochs; 0 only tests (default the protocol's)"
    )
    recipe.add_argument("-z", "--batch_size", type=positive, help="patches per minibatch")
    recipe.add_argument("--patches_per_image", type=positive, metavar="P", help="patches per photo")
    recipe.add_argument("--learning_rate", type=float, help="at the start")
    recipe.add_argument(
        "-r", "--rng_seed", type=int, default=13, help="seed of every random choice (default 13)"
    )

    network = parser.add_argument_group("network")
    network.add_argument("--model", choices=MODELS, default="alexnet", help="(default alexnet)")
    network.add_argument(
        "--weights", type=Path, help="pretrained weights; AlexNet's are downloaded unless given"
    )
    network.add_argument("--allow_missing", nargs="*", default=(), metavar="LAYER",
                         help="layers that the weights may lack, such as 'classifier.*'")  # fmt: skip
    network.add_argument("--from_scratch", action="store_true", help="transfer nothing, train everything")
    network.add_argument("--freeze", metavar="LAYER", help="train only what comes after this layer")

    files = parser.add_argument_group("run")
    files.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="(default results)")
    files.add_argument("--save_path", type=Path, help="where the run is saved (default DIR/run.pt)")
    files.add_argument(
        "--serialize", type=int, default=1, metavar="N", help="save every N epochs; 0: never (default 1)"
    )
    files.add_argument(
        "--report", action="store_true", help="also write report.html: tables, curves, maps, hits and misses"
    )
    files.add_argument(
        "--eval_freq",
        type=int,
        default=0,
        metavar="N",
        help="also test after every N epochs (default 0: only at the end)",
    )
    files.add_argument(
        "--history", type=positive, default=1, metavar="N", help="keep the last N epochs (default 1)"
    )
    files.add_argument("--model_file", type=Path, help="go on with this run; with -e 0 only test it")
    files.add_argument(
        "-b", "--backend", "--device", metavar="DEVICE", help="cpu, gpu or cuda:N (default gpu if any)"
    )
    files.add_argument(
        "--amp", action=argparse.BooleanOptionalAction, help="mixed precision (default on a GPU only)"
    )
    files.add_argument(
        "--num_workers", type=int, default=min(4, os.cpu_count() or 1), help="processes that decode photos"
    )

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


def class_list(text: str) -> tuple[str, ...]:
    """Read class names separated by commas, and put the background before them."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return names if names[:1] == ("background",) else ("background", *names)


def trains_transferred(model: AlexNet, report: dict[str, Any] | None) -> bool:
    """Tell whether any tensor that is trained was transferred.

    Only then is there something for the low learning rate of the pretrained regime to protect; new layers over
    frozen ones start from nothing, and train like a network from scratch.
    """
    if report is None:
        return False
    transferred = TransferReport.from_dict(report)
    moved = {*transferred.copied, *transferred.adapted, *transferred.cast}
    return any(name in moved and parameter.requires_grad for name, parameter in model.named_parameters())


def adjusted(protocol: Protocol, args: argparse.Namespace) -> Protocol:
    """Return the protocol with the numbers that the command line changes."""
    changes = {
        name: getattr(args, name)
        for name in ("patches_per_image", "batch_size")
        if getattr(args, name) is not None
    }
    if args.learning_rate is not None:
        for regime in ("pretrained", "scratch"):
            changes[regime] = dataclasses.replace(getattr(protocol, regime), learning_rate=args.learning_rate)
    return dataclasses.replace(protocol, **changes)


def choose_device(backend: str | None) -> torch.device:
    """Return the device for neon's words (cpu, gpu) and torch's (cuda:1); the fastest there is unless given."""
    if backend is None:
        backend = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device("cuda" if backend == "gpu" else backend)
    except RuntimeError:
        raise ArgumentError(f"--backend must be cpu, gpu or cuda:N, got {backend!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ArgumentError(
            f"--backend {backend} asks for a CUDA device and torch sees {torch.cuda.device_count()}; "
            "use -b cpu, or install a build of torch for your GPU"
        )
    return device


class Stopwatch:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Count the time since the last lap to ``phase``."""
        now = time.perf_counter()
        self.laps[phase] = now - self._last
        self._last = now


if __name__ == "__main__":
    sys.exit(main())
