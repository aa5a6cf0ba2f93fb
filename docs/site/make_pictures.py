"""Make the pictures of the documentation, from the demo's scenes and the tutorial's network.

    python docs/site/make_pictures.py

Takes half a minute, needs matplotlib, downloads nothing, and writes docs/pictures/*.png. The network is the one that
the tutorial trains: its blocks are run as they stand on the page.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import transferkit as tk
from transferkit.boxes import area, intersection
from transferkit.labeling import label_patches
from transferkit.sampler import BackgroundFraction, ClassBalanced, PositivesFirst, draw_patches, generator
from transferkit.scorer import map_box, score_map
from transferkit.scorer.pictures import save_figure
from transferkit.scorer.pictures.style import color, draw_boxes, dress, line_style, new_figure, show_image

DOCS = Path(__file__).resolve().parents[1]
PICTURES = DOCS / "pictures"
EXPONENTS = (0.5, 1, 2, 3, 5, 8, 12, 20)
WHITE_UNDER = {"facecolor": "none", "edgecolor": "black", "linewidth": 2.2}


def main() -> None:
    """Run the tutorial, then draw."""
    tutorial = run_tutorial()
    PICTURES.mkdir(exist_ok=True)
    for name, draw in PLANNED.items():
        path = PICTURES / f"{name}.png"
        made = draw(tutorial)
        if isinstance(made, Figure):
            save_figure(made, path, dpi=140)
            made = Image.open(path)
        made.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path.relative_to(DOCS)}: {path.stat().st_size / 1000:.0f} kB")


def run_tutorial() -> SimpleNamespace:
    """Return the names that the tutorial's blocks leave behind."""
    code = re.findall(r"^```python\n(.*?)^```$", (DOCS / "tutorial.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as printed:
        os.chdir(folder)
        try:
            exec("\n".join(code), names)
            names["photos"] = [names["test"][row] for row in range(len(names["test"]))]
            names["scenes"] = [names["training"][row] for row in range(len(names["training"]))]
        finally:
            os.chdir(before)
    print(printed.getvalue())
    return SimpleNamespace(**names)


@torch.inference_mode()
def patch_probs(model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the grid's boxes (P, 4) of a scene and what a network says of each, (P, K)."""
    boxes = tk.PatchGrid()(image.shape[1:])
    pixels = tk.crop_and_resize(image, boxes, 32)
    return boxes, model.eval()(pixels / 127.5 - 1).softmax(dim=1)


def overview(tutorial: SimpleNamespace) -> Figure:
    """What the library is for: a scene, its labeled patches, and where the transferred network sees each digit."""
    photo = clearest(tutorial)
    image, names = photo.image, tutorial.DEMO_CLASSES
    boxes, probs = patch_probs(tutorial.model, image)
    classes = photo.classes.unique().tolist()[:3]
    colors = {number: color(1 + place) for place, number in enumerate(classes)}
    maps = score_map(probs, boxes, tuple(image.shape[1:]), exponent=5)
    figure = new_figure(2.35 * (2 + len(classes)), 2.15)
    scene, patches, *panels = figure.subplots(1, 2 + len(classes))
    show_image(scene, image, "a scene and its objects")
    for box, number in zip(photo.boxes, photo.classes.tolist(), strict=True):
        draw_boxes(scene, box[None], **WHITE_UNDER)
        draw_boxes(scene, box[None], edgecolor="white", linewidth=1.2)
        scene.annotate(names[number].removeprefix("digit"), box[:2].tolist(), color="white", fontsize=8,
                       bbox={"facecolor": "black", "pad": 1, "linewidth": 0}, va="bottom")  # fmt: skip
    labels = label_patches(boxes, photo.boxes, photo.classes).labels
    show_image(patches, image, "patches that show one well")
    for number in classes:
        draw_boxes(patches, boxes[labels == number], edgecolor=colors[number], linewidth=0.8)
    gray = image.float().mean(dim=0).byte()
    for axes, number in zip(panels, classes, strict=True):
        values = maps[number]
        show_image(axes, gray, f"where the network sees a {names[number].removeprefix('digit')}")
        axes.imshow(values / values.max(), cmap="magma", alpha=0.75, vmin=0, vmax=1,
                    extent=(0, image.shape[2], image.shape[1], 0))  # fmt: skip
        draw_boxes(axes, map_box(values)[None], edgecolor="white", linewidth=1.4, linestyle="--")
    return figure


def clearest(tutorial: SimpleNamespace) -> Any:
    """Return the wide test scene of two or three different digits whose maps find them best."""

    def overlap(photo: Any) -> float:
        boxes, probs = patch_probs(tutorial.model, photo.image)
        maps = score_map(probs, boxes, tuple(photo.image.shape[1:]), exponent=5)
        found = torch.stack([map_box(maps[number]) for number in photo.classes.tolist()])
        shared = intersection(found, photo.boxes).diagonal()
        return float((shared / (area(found) + area(photo.boxes) - shared)).min())

    wide = [
        photo
        for photo in tutorial.photos
        if 2 <= len(photo.classes.unique()) == len(photo.classes) <= 3
        and photo.image.shape[2] > photo.image.shape[1]
    ]
    return max(wide, key=overlap)


def patches(tutorial: SimpleNamespace) -> Any:
    """The tutorial's own picture of its patches."""
    return draw_patches(
        tutorial.scene.image,
        tutorial.boxes,
        tutorial.labels,
        class_names=tutorial.DEMO_CLASSES,
        height=420,
        tiles=36,
    )


def background(tutorial: SimpleNamespace) -> Figure:
    """How the labels of patches are shared out: as they lie, and as three balances choose them."""
    balances = {
        "all patches": None,
        "PositivesFirst()": PositivesFirst(),
        "BackgroundFraction(0.1)": BackgroundFraction(0.1),
        "ClassBalanced(0.3)": ClassBalanced(background=0.3),
    }
    shares = {name: torch.zeros(11) for name in balances}
    for row, scene in enumerate(tutorial.scenes):
        boxes = tk.PatchGrid()(scene.image.shape[1:])
        labels = label_patches(boxes, scene.boxes, scene.classes).labels
        for name, balance in balances.items():
            chosen = labels if balance is None else labels[balance(labels, 64, generator(0, 0, row, "picture"))]
            shares[name] += chosen.bincount(minlength=11)
    figure = new_figure(6.4, 1.9)
    axes = figure.subplots()
    for place, counts in enumerate(reversed(shares.values())):
        parts = counts / counts.sum()
        axes.barh(place, parts[0], color="0.75", edgecolor="white")
        axes.text(parts[0] / 2, place, f"{parts[0]:.0%}", ha="center", va="center", fontsize=8)
        left = float(parts[0])
        for number in range(1, 11):
            axes.barh(
                place, parts[number], left=left, color=color(1 + number % 5), edgecolor="white", linewidth=0.5
            )
            left += float(parts[number])
    axes.set_yticks(range(len(shares)), [*reversed(shares)])
    dress(axes, "share of patches: background in gray, the ten digits in colors", "")
    axes.set_xlim(0, 1)
    axes.grid(visible=False)
    return figure


def exponents(tutorial: SimpleNamespace) -> Figure:
    """Mean AP of the tutorial's two networks against the exponent."""
    truth = tutorial.test.presence()
    figure = new_figure(5.2, 2.7)
    axes = figure.subplots()
    for place, (name, model) in enumerate(
        (("transferred", tutorial.model), ("from scratch", tutorial.scratch))
    ):
        probs = [patch_probs(model, photo.image)[1] for photo in tutorial.photos]
        values = []
        for exponent in (*EXPONENTS, math.inf):
            scorer = tk.ImageScorer(len(probs), 11, exponent=exponent)
            for row, of_scene in enumerate(probs):
                scorer.add_batch(of_scene, torch.full((len(of_scene),), row))
            result = tk.evaluate(
                scorer.compute(), truth.present, truth.difficult_only, class_names=tutorial.DEMO_CLASSES
            )
            values.append(100 * result.mean_ap())
        axes.plot(range(len(values)), values, label=name, **line_style(place + 1))
    axes.set_xticks(range(len(EXPONENTS) + 1), [*map(str, EXPONENTS), "max"])
    dress(axes, "exponent", "mAP, per cent")
    axes.legend(frameon=False, fontsize=8)
    return figure


def average_precision(_: SimpleNamespace) -> Figure:
    """One ranking, and what the interpolations measure of it."""
    shows = torch.tensor([True, False, True, True, False, True])
    hits = shows.cumsum(0)
    recall, precision = hits / shows.sum(), hits / torch.arange(1, len(shows) + 1)
    envelope = precision.flip(0).cummax(0).values.flip(0)  # the best precision at that recall or more
    levels = torch.arange(11) / 10
    best = [float(envelope[recall >= level - 1e-6].max()) for level in levels]
    figure = new_figure(5.2, 2.7)
    axes = figure.subplots()
    axes.plot([0, *recall.tolist()], [1, *precision.tolist()], label="as ranked: none", **line_style(0))
    axes.step([0, *recall.tolist()], [1, *envelope.tolist()], where="pre", color=color(1), linestyle="--",
              label="made to fall: all-points")  # fmt: skip
    axes.plot(levels, best, "s", color=color(2), markersize=4, label="at eleven recalls: 11-point")
    dress(axes, "recall", "precision")
    axes.set(xlim=(-0.02, 1.02), ylim=(0, 1.05))
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    return figure


PLANNED: dict[str, Callable[[SimpleNamespace], Any]] = {
    "overview": overview,
    "patches": patches,
    "background": background,
    "exponents": exponents,
    "average_precision": average_precision,
}

if __name__ == "__main__":
    main()
