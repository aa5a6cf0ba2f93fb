"""Is the answer the same on any number of ranks? The recipes on the demo's scenes, in 1, 2, 3 and 4 processes.

    python -m tests.benchmarks.ranks --out OUT

The processes talk over gloo on one machine. Dropout is off, since each process draws its own, but in the last way. How far
rounding alone takes a run tells another one in one process, whose pretrained weights were moved by a ten-millionth.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import transferkit as tk
from tests.benchmarks.rounds import say
from tests.benchmarks.table import Table, write_tables
from transferkit import finetune
from transferkit.datasets import DEMO_CLASSES, VOCDataset, write_demo_devkit
from transferkit.distributed import gather_objects, world_size
from transferkit.finetune import DEMO, NEON2016, OQUAB2014, RECOMMENDED, FeatureSettings, Protocol
from transferkit.finetune.training import Stepper
from transferkit.preprocessing import IMAGENET

RANKS = (1, 2, 3, 4)
SMALL: dict[str, Any] = {
    **{name: getattr(DEMO, name) for name in ("patch_size", "hidden", "hidden_std", "head_std")},
    "drop_rate": 0.0,
}
NEON = replace(
    NEON2016, **SMALL, patches_per_image=128, epochs=4, pretrained=DEMO.pretrained, scratch=DEMO.scratch
)
WAYS: dict[str, tuple[Protocol, FeatureSettings]] = {
    "NEON2016, exact": (NEON, FeatureSettings(cache=False)),
    "OQUAB2014, cached": (replace(OQUAB2014, **SMALL, epochs=4), FeatureSettings(cache=True)),
    "RECOMMENDED, cached": (replace(RECOMMENDED, **SMALL), FeatureSettings("exact", cache=True)),
    "RECOMMENDED, shared": (replace(RECOMMENDED, **SMALL), FeatureSettings("shared", cache=True)),
    "RECOMMENDED with dropout, shared": (
        replace(RECOMMENDED, **{**SMALL, "drop_rate": RECOMMENDED.drop_rate}),
        FeatureSettings("shared", cache=True),
    ),
}


def main() -> None:
    """Run the benchmark, or with --child one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where scenes and results go")
    parser.add_argument("--scenes", type=int, default=40, help="to train on, and half as many to test on")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.out)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    write_demo_devkit(options.out / "scenes", num_train=options.scenes, num_test=options.scenes // 2)
    torch.manual_seed(1)
    source = finetune.small_alexnet(10)
    finetune.train_on_digits(source, IMAGENET, epochs=4)
    weights = source.state_dict()
    torch.save(weights, options.out / "digits.pt")
    moved = {name: value * (1 + 1e-7 * torch.randn(value.shape)) for name, value in weights.items()}
    torch.save(moved, options.out / "moved.pt")
    for ranks in RANKS:
        say(f"{ranks} ranks")
        start(options.out, ranks)
    table = compared(options.out, options.scenes)
    write_tables(options.out / "ranks.json", [table])
    print(table.markdown())


def start(out: Path, ranks: int) -> None:
    """Run the recipes in some processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    words = [*(launcher if ranks > 1 else ["-m"]), "tests.benchmarks.ranks", "--out", str(out), "--child"]
    subprocess.run([sys.executable, *words], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


def child(out: Path) -> None:
    """Fit and test by every way; the first process keeps what they came to."""
    torch.set_num_threads(1)
    with finetune.process_group(torch.device("cpu")):
        train, test = (
            VOCDataset(out / "scenes", image_set=s, class_names=DEMO_CLASSES) for s in ("trainval", "test")
        )
        found = {way: fitted(out, *how, train, test, weights="digits.pt") for way, how in WAYS.items()}
        if finetune.is_first():
            torch.save(found, out / f"{world_size()}.pt")
        if world_size() == 1:
            found = {way: fitted(out, *how, train, test, weights="moved.pt") for way, how in WAYS.items()}
            torch.save(found, out / "moved_1.pt")


def fitted(
    out: Path, protocol: Protocol, features: FeatureSettings, train: VOCDataset, test: VOCDataset, weights: str
) -> dict[str, Any]:
    """Return what a recipe comes to."""
    seen: list[float] = []
    real = Stepper._image_losses

    def counting(self: Stepper, loss: Any, log_probs: Any, *rest: Any) -> Any:
        seen.append(len(log_probs) / len(rest[-1].image_index.unique()))
        return real(self, loss, log_probs, *rest)

    network = finetune.small_alexnet(10)
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    network.preprocessing = IMAGENET  # type: ignore[assignment]
    Stepper._image_losses = counting  # type: ignore[method-assign]
    try:
        classifier = tk.SceneClassifier(
            network,
            protocol,
            weights=out / weights,
            features=features,
            class_names=DEMO_CLASSES,
            device="cpu",
        ).fit(train)
    finally:
        Stepper._image_losses = real  # type: ignore[method-assign]
    run = classifier.run
    return {
        "exponent": classifier.decided.exponent,
        "mean_ap": classifier.test(test).mean_ap(),
        "weights": dict(classifier.model.state_dict()),
        "patches": run.history[-1].patches,
        "of_photo": [size for sizes in gather_objects(seen) for size in sizes],
    }


def compared(out: Path, scenes: int) -> Table:
    """Return the table: what each number of processes came to, beside one process."""
    table = Table(
        f"{scenes} scenes to train on, {scenes // 2} to test on; the demo's small AlexNet, pretrained on single digits",
        {
            "recipe": "", "processes": "", "exponent": "g", "mean AP, %": ".2f",
            "weights differ from one process by": ".1e", "patches in the patches' loss, per epoch": ",.0f",
            "patches per photo in the images' loss": "",
        },
    )  # fmt: skip
    names = {**{str(ranks): f"{ranks}.pt" for ranks in RANKS}, "1, moved by 1e-7": "moved_1.pt"}
    every = {name: torch.load(out / file, weights_only=False) for name, file in names.items()}
    for way, (protocol, _) in WAYS.items():
        for name in every:
            found, one = every[name][way], every["1"][way]["weights"]
            differ = max(float((found["weights"][key] - value).abs().max()) for key, value in one.items())
            sizes = found["of_photo"]
            images = f"{min(sizes):g} to {max(sizes):g}" if sizes else "none"
            chosen = found["exponent"] if protocol.choice else "as given"
            table.add(way, name, chosen, 100 * found["mean_ap"], differ, found["patches"], images)
    return table


if __name__ == "__main__":
    main()
