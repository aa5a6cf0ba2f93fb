"""The picture at the top of the documentation, drawn with the network of the tutorial.

    python -m tests.docs.overview [SCENE] [PNG]     a scene of the tutorial's tests, and where to

Trains that network first, for a minute of one core; with more threads, or on another processor, it rounds otherwise
and may find other digits.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import transferkit as tk
from tests.docs.pages import ROOT, blocks
from transferkit.sampler import crop_and_resize
from transferkit.scorer import map_box, score_map
from transferkit.scorer.pictures import save_figure
from transferkit.scorer.pictures.style import color, draw_boxes, new_figure, outline_boxes, show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCENE = 9  # chosen: two digits apart, both found, which they are not in every scene


def tutorial() -> dict[str, Any]:
    """Run the tutorial's blocks up to the one that trains on scenes; return their names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block in blocks(ROOT / "docs/tutorial.md"):
            if block.language == "python":
                exec(block.text, names)
            if block.text.endswith("train_on_scenes(model)\n"):
                names["scenes"] = [names["test"][row] for row in range(len(names["test"]))]
                break
    return names


@torch.inference_mode()
def maps_of(model: torch.nn.Module, image: Tensor) -> Tensor:
    """Return where each class is seen, (K, H, W)."""
    size = (image.shape[1], image.shape[2])
    boxes = tk.PatchGrid()(size)
    patches = crop_and_resize(image, boxes, 32)
    probabilities = torch.cat([model.eval()(part / 127.5 - 1).softmax(dim=1) for part in patches.split(64)])
    return score_map(probabilities, boxes, size, exponent=5)


def overview(scene: Any, names: Sequence[str], maps: Tensor) -> Figure:
    """Draw a scene, the patches that show an object well, and where each of its classes is seen."""
    height, width = scene.image.shape[1:]
    classes = scene.classes.tolist()
    figure = new_figure(2.2 * (2 + len(classes)), 2.2 * height / width + 0.25)
    photo, patches, *seen = figure.subplots(1, 2 + len(classes))

    show_image(photo, scene.image, "a scene and its objects")
    outline_boxes(photo, scene.boxes)
    for (left, top, _, _), k in zip(scene.boxes.tolist(), classes, strict=True):
        photo.text(
            left, top, names[k], color="white", va="bottom", fontsize=9, bbox={"color": "black", "pad": 2}
        )

    show_image(patches, scene.image, "patches that show one well")
    boxes = tk.PatchGrid()((height, width))
    labels = tk.label_patches(boxes, scene.boxes, scene.classes).labels
    for index, k in enumerate(classes):
        of_class = boxes[labels == k]
        draw_boxes(patches, of_class[:: max(1, len(of_class) // 20)], edgecolor=color(index + 1), linewidth=1)

    gray = (scene.image.float().mean(dim=0) / 4).byte()
    for axes, k in zip(seen, classes, strict=True):
        show_image(axes, gray, f"where the network sees a {names[k]}")
        strength = (maps[k] / maps[k].max()).numpy()
        axes.imshow(strength, cmap="inferno", vmin=0, vmax=1, alpha=strength**0.5, extent=(0, width, height, 0))
        draw_boxes(axes, map_box(maps[k])[None], edgecolor="white", linewidth=1.4, linestyle="--")
    return figure


def main() -> None:
    """Draw the picture."""
    torch.set_num_threads(1)
    number = int(sys.argv[1]) if len(sys.argv) > 1 else SCENE
    path = sys.argv[2] if len(sys.argv) > 2 else ROOT / "docs/pictures/overview.png"
    names = tutorial()
    scene = names["scenes"][number]
    digits = [name.removeprefix("digit") for name in names["DEMO_CLASSES"]]
    figure = overview(scene, digits, maps_of(names["model"], scene.image))
    print(save_figure(figure, Path(path), dpi=150))


if __name__ == "__main__":
    main()
