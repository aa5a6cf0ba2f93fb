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

or near that, as the processor rounds. docs/pascal_voc.md has what a run leaves, and figures on real photos.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from argparse import BooleanOptionalAction
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transferkit as tk
from transferkit import finetune
from transferkit.datasets import DEMO_CLASSES, VOC_CLASSES, VOCDataset, fetch_voc
from transferkit.deprecation import renamed_flag
from transferkit.finetune import FeatureSettings, LoopSettings, Protocol, Run
from transferkit.scorer import PatchLog
from transferkit.scorer.pictures import require_matplotlib

PROTOCOLS = {**finetune.PROTOCOLS, "demo": finetune.DEMO}
LEFT_OUT = {  # of the settings in a run's file, which a resumed run takes: a file does not say where things go
    *("demo", "model_file", "epochs", "results", "save_path", "cache_dir", "cache_limit", "earlier"),
    *("backend", "num_workers", "channels_last", "compile", "profile", "timeout"),
}
say = partial(print, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the example; return the exit status."""
    finetune.use_huge_pages()
    argv, args, began = sys.argv[1:] if argv is None else argv, None, time.time()
    try:
        args = parse_arguments(argv)
        group = finetune.process_group(finetune.choose_device(args.backend), timeout=args.timeout)
        with group, finetune.lock_folder(args.results):
            demo(args) if args.demo else run(args)
    except (tk.TransferKitError, OSError) as error:
        print(tk.errors.harmless(f"{Path(__file__).name}: error: {error}", lines=True), file=sys.stderr)
        return 2
    except (KeyboardInterrupt, finetune.Stopped) as error:
        run_file = None if args is None or args.demo else args.save_path or args.results / "run.pt"
        if finetune.is_first():
            print(f"\nstopped; {finetune.how_to_go_on(argv, run_file, since=began)}", file=sys.stderr)
        return error.code if isinstance(error, finetune.Stopped) else 130
    return 0


def run(args: argparse.Namespace, compared_with: Mapping[str, Run] | None = None) -> tuple[Run, float]:
    """Train and test as ``args`` say; write results, ``compared_with`` other runs; return the run and its mean AP."""
    stopwatch, protocol = finetune.Stopwatch(), protocol_of(args)
    if args.report:  # before any long work
        require_matplotlib()
    if args.model_file:
        print(f"{args.model_file}: data_dir {str(args.data_dir or 'downloaded')!r}")
    print(protocol)

    # Data: photos to train on and to test on, downloaded where there are none.
    test_set = photos_of(args, protocol, args.test_set, args.max_test_imgs)
    only_tested = args.model_file and not protocol.epochs
    train_set = None if only_tested else photos_of(args, protocol, args.image_set, args.max_train_imgs)
    stopwatch.lap("read data")

    # Train: adaptation layers on top, pretrained weights below, frozen or trained as the recipe says.
    classifier = classifier_of(args, protocol, test_set.class_names)
    if train_set is None:
        classifier.restore(args.model_file, log=say)
    else:
        classifier.fit(
            train_set,
            run_file=args.save_path or args.results / "run.pt",
            resume=args.model_file or False,
            save_every=args.serialize,
            keep=args.history,
            validation=test_set if args.eval_freq else None,
            test_every=args.eval_freq or 1,
            settings=settings_of(args),
            log=say,
            progress=finetune.is_first(),
        )
    stopwatch.lap("train")

    # Test: score every photo for every class by the sum over its patches of probability^exponent, and rank them.
    patches = classifier.score(test_set, keep_patches=args.report, progress=finetune.is_first())
    result = classifier.evaluate(test_set, patches, bootstrap=1000 if args.report else 0)
    stopwatch.lap("test")
    print(result)

    if args.predict:  # new photos, scored as in the test
        found = classifier.predict_to(args.results / "predictions.csv", args.predict, precision=args.threshold)
        say(f"{found.path}: {found.photos} photos, {len(found.bad_photos)} skipped")

    # Results: of several processes, the first writes them.
    if finetune.is_first():
        finetune.write_results(
            args.results, classifier.run, result, seconds=stopwatch.laps, image_set=args.test_set
        )
        if isinstance(patches, PatchLog):
            folder = args.data_dir.resolve().name if args.data_dir else f"VOC{args.year}"
            photos = "digits in scenes" if args.protocol == "demo" else folder
            title = f"{args.model}, {protocol.name}, {photos} {args.test_set}"
            seen = finetune.look_at_patches(classifier.sampler(train_set), train_set) if train_set else None
            more = {"seconds": stopwatch.laps, "compared_with": compared_with, "patches": seen}
            report = finetune.RunReport.of(classifier.run, result, patches, test_set, title=title, **more)
            finetune.build_report(report, progress=True).write(args.results / "report.html")
        print(stopwatch, f"mAP {result.mean_ap():.2%} ({result.rule}); results are in {args.results}", sep="\n")
    return classifier.run, result.mean_ap()


def demo(args: argparse.Namespace) -> None:
    """Tell single digits apart; then, from scratch and with what that taught, say which digits a scene shows."""
    weights = finetune.prepare_demo(
        args.results, seed=args.rng_seed, device=args.backend, progress=True, log=say
    )
    runs, found = {}, {}
    for name, from_scratch in (("from scratch", True), ("pretrained", False)):
        say(f"\n== {name} ==")
        own = {
            "data_dir": args.results / "data", "class_names": DEMO_CLASSES, "protocol": "demo",
            "model": "alexnet-small", "weights": weights, "eval_freq": 1, "num_workers": 0,
            "from_scratch": from_scratch, "results": args.results / name.replace(" ", "_"),
            "report": not from_scratch and find_spec("matplotlib") is not None,
        }  # fmt: skip
        runs[name], found[name] = run(argparse.Namespace(**{**vars(args), **own}), compared_with=dict(runs))
    if not finetune.is_first():
        return
    curves = finetune.write_convergence(
        args.results / "convergence.png", {name: one.history for name, one in runs.items()}
    )
    say("\nmAP: " + ", ".join(f"{name} {mean_ap:.1%}" for name, mean_ap in found.items()))
    pictures = f"the curves are in {curves}, maps and photos in {args.results / 'pretrained' / 'report.html'}"
    say(pictures if curves else "for curves, maps and a report: pip install matplotlib")


def protocol_of(args: argparse.Namespace) -> Protocol:
    """Return the recipe with what the command line, or an earlier run's choice on held-out photos, changes in it."""
    protocol = PROTOCOLS[args.protocol]
    if chosen := finetune.choice_in(args.earlier):
        protocol = protocol.decided(*chosen)
    return protocol.adjusted(args.patches_per_image, args.batch_size, args.learning_rate, args.epochs)


def photos_of(args: argparse.Namespace, protocol: Protocol, image_set: str, most: int | None) -> VOCDataset:
    """Read the photos of an image set."""
    folder = args.data_dir or fetch_voc(args.year, (args.image_set, args.test_set), progress=True)
    how = {name: getattr(args, name) for name in ("class_names", "bad_boxes", "boxes_on")}
    how |= {"max_images": most, "subtract_one": protocol.subtract_one}
    index = args.cache_dir and args.cache_dir / "annotations.index"
    with finetune.first_on_machine() if index else nullcontext():  # the others find there what it read
        photos = VOCDataset(folder, args.year, image_set, progress=True, index=index, **how)
    print(f"{image_set}: {len(photos)} photos")
    return photos


def classifier_of(
    args: argparse.Namespace, protocol: Protocol, class_names: tuple[str, ...]
) -> tk.SceneClassifier:
    """Return the classifier that the command line describes, not fitted yet."""
    features = FeatureSettings(
        method=args.features if args.features in ("exact", "shared") else None,
        pyramid_scales=args.pyramid_scales,
        amp=args.amp,
        cache={"exact": False, "cached": True}.get(args.features),
        folder=args.cache_dir or args.results / "features",
        limit=None if args.cache_limit is None else int(args.cache_limit * 1e9),
    )
    profile = args.results / "profile" if args.profile else None
    return tk.SceneClassifier(
        args.model,
        protocol,
        class_names=class_names,
        weights=args.weights,
        allow_missing=args.allow_missing,
        from_scratch=args.from_scratch,
        freeze=args.freeze,
        features=features,
        loop=LoopSettings(args.amp, args.channels_last, args.compile, args.accumulate, profile),
        seed=args.rng_seed,
        num_workers=args.num_workers,
        device=args.backend,
    )


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a resumed run takes from its checkpoint unless the command line says otherwise."""
    kept = {name: value for name, value in vars(args).items() if name not in LEFT_OUT}
    return {name: str(value) if isinstance(value, Path) else value for name, value in kept.items()}


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Read the command line; with --model_file, what it does not say comes from that run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    # fmt: off
    add = parser.add_argument_group("data").add_argument
    add("--data_dir", type=Path, help="folder that holds VOCdevkit; downloaded and cached unless given")
    add("--year", default="2007", help="2007 or 2012 (default 2007)")
    add("--image_set", default="trainval", help="photos to train on (default trainval)")
    add("--test_set", default="test", help="photos to test on (default test)")
    add("--classes", dest="class_names", type=class_list, default=VOC_CLASSES, metavar="A,B", help="default VOC's")
    add("--max_train_imgs", type=positive, metavar="N", help="train on the first N photos")
    add("--max_test_imgs", type=positive, metavar="N", help="test on the first N photos")
    add("--bad_boxes", choices=["error", "cut", "skip", "keep"], default="error", help="that leave their photo")
    add("--boxes_on", choices=["recorded", "stored", "shown"], default="recorded", help="which way up photos are")
    add("--predict", type=Path, metavar="DIR", help="photos to predict, into predictions.csv in --results")
    add("--threshold", type=float, metavar="SHARE", help="precision of those labels (default where F1 is best)")
    add("--demo", action="store_true", help="use handwritten digits in scenes; needs no file")

    add = parser.add_argument_group("recipe").add_argument
    add("--protocol", choices=PROTOCOLS, default="neon2016", help="(default neon2016)")
    add("-e", "--epochs", type=int, help="total number of epochs; 0 only tests (default the protocol's)")
    add("-z", "--batch_size", type=positive, help="patches per minibatch, of all processes together")
    add("--patches_per_image", type=positive, metavar="P", help="patches per photo")
    add("--learning_rate", type=float, help="at the start")
    add("-r", "--rng_seed", type=int, default=13, help="seed of every random choice (default 13)")

    add = parser.add_argument_group("network").add_argument
    add("--model", default="alexnet", metavar="NAME", help=f"{', '.join(finetune.NETWORKS)}, module:factory")
    add("--weights", type=Path, help="pretrained weights (default the model's own; AlexNet's are downloaded)")
    add("--allow_missing", nargs="*", default=(), metavar="LAYER", help="what the weights may lack: 'classifier.*'")
    add("--from_scratch", action="store_true", help="transfer nothing, train everything")
    add("--freeze", metavar="LAYER", help="train only what comes after this layer")

    add = parser.add_argument_group("files").add_argument
    add("--results", type=Path, metavar="DIR", help="(default results, or the folder of --model_file)")
    add("--save_path", type=Path, help="where the run is saved (default DIR/run.pt, or --model_file)")
    add("--serialize", type=int, default=1, metavar="N", help="save every N epochs; 0: never (default 1)")
    add("--history", type=positive, default=1, metavar="N", help="keep the last N epochs (default 1)")
    add("--model_file", type=Path, help="go on with this run; with -e 0 only test it")
    add("--eval_freq", type=int, default=0, metavar="N", help="also test every N epochs (default 0: at the end)")
    add("--report", action=BooleanOptionalAction, default=False, help="also write report.html, with maps")

    add = parser.add_argument_group("speed").add_argument
    add("-b", "--backend", "--device", metavar="DEVICE", help="cpu, gpu or cuda:N (default gpu if any)")
    add("--num_workers", type=int, default=min(4, os.cpu_count() or 1), help="processes that decode photos")
    add("--amp", action=BooleanOptionalAction, help="compute in bfloat16 (default on a GPU only)")
    add("--channels_last", action=BooleanOptionalAction, help="(default on a GPU only)")
    add("--compile", action="store_true", help="compile the network first, which takes a minute")
    add("--accumulate", type=positive, default=1, metavar="N", help="step after every N minibatches (default 1)")
    add("--features", choices=["exact", "shared", "cached"],
        help="exact: each patch through the whole network; shared: read from maps of the whole photo, in training "
        "and test; cached: train on what frozen layers give, computed once (the default where layers are frozen)")
    add("--pyramid_scales", type=number_or_scales, metavar="N|SCALES",
        help="image pyramid scales for shared features: how many, or which: 1,1.4,2 times the size of a patch on the "
        "photo's shorter side (default the protocol's, whose largest takes half of the time)")
    add("--levels", dest="pyramid_scales", type=number_or_scales, help=argparse.SUPPRESS,
        action=renamed_flag("--levels", "--pyramid_scales", until="0.2"))
    add("--cache_dir", type=Path, metavar="DIR", help="where features are cached (default in --results)")
    add("--cache_limit", type=float, metavar="GB", help="the most that a cache may take (default what is free)")
    add("--timeout", type=float, metavar="SECONDS", help="that a process waits for another (default torch's, 1800)")
    add("--profile", action="store_true", help="show where the time of the first steps goes; see DIR/profile")
    # fmt: on
    args, earlier = parser.parse_args(argv), {}
    if args.model_file:
        earlier = finetune.read_run(args.model_file)["settings"]
        args = finetune.parse_with_run(parser, argv, earlier, vars(args).keys() - LEFT_OUT)
    own = args.model_file if args.model_file and not args.results else None
    args.results = args.results or (own.parent if own else Path("results"))
    args.save_path, args.earlier = args.save_path or own, earlier
    return args


def positive(text: str) -> int:
    """Read a whole number above zero."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def number_or_scales(text: str) -> int | tuple[float, ...]:
    """Read a whole number above zero, or scales separated by commas."""
    return tuple(float(scale) for scale in text.split(",") if scale) if "," in text else positive(text)


def class_list(text: str) -> tuple[str, ...]:
    """Read class names separated by commas, and put the background before them."""
    return finetune.with_background(name.strip() for name in text.split(",") if name.strip())


if __name__ == "__main__":
    finetune.stop_on_sigterm()  # after the step in work; workers end, and locks are given back
    sys.exit(main())
