"""Every picture: labeled, nothing overlapping or cut off, readable in gray, and no trace left in pyplot."""

from __future__ import annotations

import io
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from transferkit.errors import ArgumentError
from transferkit.scorer import evaluate, find_extremes

pytest.importorskip("matplotlib", reason="pictures need matplotlib (extra: plots)")

from transferkit.scorer import pictures

NAMES = ("background", *(f"class {k}" for k in range(7)), "a long class name")


def photo(height=120, width=160, seed=0):
    return torch.randint(
        256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def truth():
    generator = torch.Generator().manual_seed(7)
    present = torch.rand(60, 9, generator=generator) < 0.25
    present[:, 0] = False
    scores = torch.rand(60, 9, generator=generator, dtype=torch.float64) + 0.4 * present
    return scores, present, present & (torch.rand(60, 9, generator=generator) < 0.2)


def class_ap():
    scores, present, difficult = truth()
    return pictures.plot_class_ap(evaluate(scores, present, difficult, class_names=NAMES, bootstrap=50))


def precision_recall(columns=5):
    scores, present, difficult = truth()
    return pictures.plot_precision_recall(scores, present, difficult, class_names=NAMES, columns=columns)


def convergence():
    loss = {"pretrained": [1.3, 0.9, 0.7], "from scratch": [2.9, 2.7, 2.6]}
    return pictures.plot_convergence(
        loss, {"pretrained": {0: 0.06, 3: 0.6}, "from scratch": {3: 0.1}}, rule="all-points"
    )


def exponents():
    lines = {"sum": {1: 0.30, 5: 0.42, math.inf: 0.38}, "mean": {1: 0.31, 5: 0.40, math.inf: 0.38}}
    return pictures.plot_exponents(lines, rule="all-points", references=[("whole image", 0.33)])


def maps():
    y, x = torch.meshgrid(torch.arange(120), torch.arange(160), indexing="ij")
    values = {"cat": torch.exp(-((x - 40.0) ** 2 + (y - 60) ** 2) / 400), "dog": torch.zeros(120, 160)}
    return pictures.plot_maps(
        photo(), values, objects={"cat": torch.tensor([[20, 30, 60, 90]])}, caption="000012"
    )


def contact_sheet():
    rows = {
        "best hits": [(photo(seed=s), f"00001{s}, 0.9{s}", torch.tensor([[10, 10, 60, 60]])) for s in range(4)],
        "worst misses": [(photo(160, 60), "000020, 0.01")],
        "false alarms": [],
    }
    return pictures.plot_contact_sheet(rows)


def patches(with_crops=True):
    start = torch.rand(80, 2, generator=torch.Generator().manual_seed(1)) * 80
    boxes = torch.cat([start, start + 40], dim=1)
    labels = torch.tensor([1, 1, 2, 8, -100] + [0] * 75)
    crops = torch.stack([photo(32, 32, seed) for seed in range(80)]) if with_crops else None
    return pictures.plot_patches(
        photo(), boxes, labels, class_names=NAMES, crops=crops, objects=torch.tensor([[5, 5, 70, 70]])
    )


PICTURES = {
    f.__name__: f for f in (class_ap, precision_recall, convergence, exponents, maps, contact_sheet, patches)
}


def undrawn_ticks(figure):
    """Tick labels outside their axis' range or switched off, which matplotlib keeps but does not draw."""
    hidden = set()
    for axes in figure.findobj(lambda artist: hasattr(artist, "get_xticklabels")):
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            low, high = sorted(limits)
            for tick in axis.get_major_ticks():
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9 or not tick.label1.get_visible():
                    hidden.add(id(tick.label1))
    return hidden


@pytest.mark.parametrize("name", PICTURES)
def test_no_text_overlaps_another_or_is_cut_off(name):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    figure = PICTURES[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    hidden = undrawn_ticks(figure)
    boxes = []
    for text in figure.findobj(Text):
        shown = text.get_visible() and text.get_text().strip() and id(text) not in hidden
        if shown and (text.axes is None or text.axes.axison):
            box = text.get_window_extent(canvas.get_renderer())
            boxes.append((text.get_text(), box))
            assert box.x0 >= -1, f"{text.get_text()!r} is cut off"
            assert box.y0 >= -1, f"{text.get_text()!r} is cut off"
            assert box.x1 <= figure.bbox.width + 1, f"{text.get_text()!r} is cut off"
            assert box.y1 <= figure.bbox.height + 1, f"{text.get_text()!r} is cut off"
    assert boxes
    for (a, box_a), (b, box_b) in itertools.combinations(boxes, 2):
        across = min(box_a.x1, box_b.x1) - max(box_a.x0, box_b.x0)
        down = min(box_a.y1, box_b.y1) - max(box_a.y0, box_b.y0)
        assert across <= 1 or down <= 1, f"{a!r} overlaps {b!r}"


@pytest.mark.parametrize("name", ["class_ap", "convergence", "exponents"])
def test_axes_are_labeled_with_units_and_nothing_has_a_title(name):
    figure = PICTURES[name]()
    for axes in figure.axes:
        assert not axes.get_title()
        assert axes.get_xlabel()
        assert "(%)" in axes.get_xlabel() + axes.get_ylabel() or "nats" in axes.get_ylabel()


@pytest.mark.parametrize("name", ["convergence", "exponents", "precision_recall"])
def test_lines_differ_without_color(name):
    for axes in PICTURES[name]().axes:
        looks = [
            (line.get_linestyle(), line.get_marker(), line._unscaled_dash_pattern[1])
            for line in axes.get_lines()
        ]
        assert len(set(map(str, looks))) == len(looks)


@pytest.mark.parametrize("name", PICTURES)
def test_is_written_as_png_svg_and_pdf(name, tmp_path):
    figure = PICTURES[name]()
    for suffix in ("png", "svg", "pdf"):
        path = pictures.save_figure(figure, tmp_path / "new folder" / f"{name}.{suffix}")
        assert path.stat().st_size > 1000
    pixels = np.asarray(Image.open(tmp_path / "new folder" / f"{name}.png").convert("L"))
    assert pixels.std() > 5
    assert (pixels[0] == 255).mean() > 0.5  # a white page, with a margin


def test_pictures_leave_pyplot_and_its_settings_alone():
    code = (
        "import sys, matplotlib;"
        # Reading rcParams['backend'] in the usual way imports pyplot.
        "settings = lambda: {key: dict.__getitem__(matplotlib.rcParams, key) for key in matplotlib.rcParams};"
        "before = settings();"
        "from transferkit.scorer import pictures;"
        "pictures.plot_convergence({'a': [1.0, 2.0]}).savefig(__import__('io').BytesIO());"
        "assert 'matplotlib.pyplot' not in sys.modules;"
        "assert settings() == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_photos_are_drawn_pixel_for_pixel():
    """The crops and photos come out with their own colors, the right way up."""
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    image[0, :20] = 255  # red above, black below
    figure = pictures.plot_contact_sheet({"row": [(image, "")]})
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    pixels = np.asarray(Image.open(file).convert("RGB"))
    red = np.argwhere((pixels == (255, 0, 0)).all(axis=-1))
    black = np.argwhere((pixels == (0, 0, 0)).all(axis=-1))
    assert len(red) > 500
    assert np.median(red[:, 0]) < np.median(black[:, 0])


def test_says_what_is_wrong():
    scores, present, _ = truth()
    with pytest.raises(ArgumentError, match="targets must be true for at least one"):
        pictures.plot_precision_recall(scores, torch.zeros_like(present), class_names=NAMES)
    with pytest.raises(ArgumentError, match="maps must be one or more of the photo's size"):
        pictures.plot_maps(photo(), {"cat": torch.zeros(5, 5)})
    with pytest.raises(ArgumentError, match="loss must be one or more runs"):
        pictures.plot_convergence({"a": []})
    with pytest.raises(ArgumentError, match="mean_ap must be"):
        pictures.plot_exponents({})
    with pytest.raises(ArgumentError, match="rows must be"):
        pictures.plot_contact_sheet({})
    with pytest.raises(ArgumentError, match=r"image must be .* uint8"):
        pictures.plot_contact_sheet({"row": [(photo().float(), "")]})
    with pytest.raises(ArgumentError, match="one per label"):
        pictures.plot_patches(photo(), torch.zeros(3, 4), torch.zeros(2), class_names=NAMES)


def test_extremes_are_the_ends_of_the_ranking():
    scores = torch.tensor([0.9, 0.1, 0.8, 0.7, 0.2, 0.6])
    targets = torch.tensor([True, True, False, True, False, True])
    ignore = torch.tensor([False, False, False, False, False, True])
    found = find_extremes(scores, targets, ignore, count=2)
    assert (found.hits, found.misses, found.alarms) == ((0, 3), (1,), (2, 4))
    assert find_extremes(scores, scores > 0.5).misses == ()  # no photo without the class outranks one with it
    with pytest.raises(ArgumentError, match="targets must be of the scores' shape"):
        find_extremes(scores, targets[1:])


ODD = ("$\\frac$", "$x_1$ <b>", "_hidden", "a & <b>|c", r"\$ \alpha^2_{", "100% $")


def test_names_are_drawn_as_they_are_written():
    from matplotlib.text import Text

    present = torch.eye(len(ODD), dtype=torch.bool)
    scores = torch.rand(len(ODD), len(ODD), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    boxes = torch.tensor([[1.0, 1, 9, 9]]).repeat(len(ODD), 1)
    figures = [
        pictures.plot_class_ap(evaluate(scores, present, class_names=ODD)),
        pictures.plot_precision_recall(scores, present, class_names=ODD),
        pictures.plot_convergence(
            {name: [1.0, 2.0] for name in ODD}, {name: {1: 0.5} for name in ODD}, rule=ODD[0]
        ),
        pictures.plot_exponents({name: {1: 0.5} for name in ODD}, references=[(name, 0.1) for name in ODD]),
        pictures.plot_maps(photo(), {name: torch.ones(120, 160) for name in ODD}, caption=ODD[0]),
        pictures.plot_contact_sheet({name: [(photo(), name)] for name in ODD}),
        pictures.plot_patches(
            photo(),
            boxes,
            torch.arange(len(ODD)),
            class_names=ODD,
            crops=torch.zeros(len(ODD), 3, 8, 8, dtype=torch.uint8),
        ),
    ]
    for figure in figures:
        figure.savefig(io.BytesIO(), format="svg")
        drawn = []
        for text in figure.findobj(Text):
            shown, is_formula = text._preprocess_math(text.get_text())
            assert not is_formula, text.get_text()
            drawn.append(shown)
        for name in ODD[1:]:
            assert any(name.split()[0] in text for text in drawn), name


def test_a_table_holds_names_as_text():
    present = torch.eye(len(ODD), dtype=torch.bool)
    table = evaluate(torch.rand(len(ODD), len(ODD)), present, class_names=ODD).to_markdown().split("\n\n")[0]
    rows = table.splitlines()
    assert len(rows) == 2 + len(ODD) + 1
    assert len({row.replace("\\|", "").count("|") for row in rows}) == 1
    assert "<" not in table
