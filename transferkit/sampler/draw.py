"""A picture of the network's input: the photo with its patches outlined, and the cropped patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from transferkit.display import OKABE_ITO
from transferkit.errors import require
from transferkit.labeling import BACKGROUND, IGNORE
from transferkit.labeling.labels import label_name
from transferkit.sampler.crop import crop_and_resize

_GRAY, _INK, _PAPER = "#999999", "#222222", "#FFFFFF"
_GAP = 8
_TEXT = 13


def draw_patches(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    *,
    class_names: Sequence[str] | None = None,
    height: int = 480,
    tile: int = 72,
    tiles: int = 42,
    background: int = 12,
) -> Image.Image:
    """Draw a photo with the outlines of its patches, and beside it some of them as the network is given them.

    Patches with an object have their class's color, background is gray, and what is ignored is not outlined. Of the
    background only some are outlined, and of every label only some are cut, evenly spaced.

    Args:
        image: (3, H, W) uint8.
        boxes: (P, 4) xyxy, pixels.
        labels: (P,) classes, 0 for background, ``IGNORE``.
        class_names: (K,) names, ``"background"`` first; ``None`` for numbers.
        height: Of the photo in the picture, pixels.
        tile: Side of a cut patch, pixels.
        tiles: At most so many are cut.
        background: At most so many background patches are outlined.

    Returns:
        A picture in RGB, drawn with Pillow alone; a notebook shows it, and ``save`` writes it.

    Raises:
        ArgumentError: Labels that do not fit the boxes, or boxes outside the image.
    """
    require(labels.shape == (len(boxes),), "labels", f"({len(boxes)},), one for each box", tuple(labels.shape))
    boxes, labels = boxes.cpu(), labels.cpu()
    photo = _outlined(image, boxes, labels, height, background)
    legend = _legend(labels, class_names, photo.width)
    chosen = [row for label in _by_interest(labels) for row in _some(labels == label, tiles).tolist()][:tiles]
    frames = [_colors(labels)[label] for label in labels[chosen].tolist()]
    sheet = _sheet(image, boxes[chosen], frames, tile, photo.height + _GAP + legend.height)
    picture = Image.new("RGB", (photo.width + _GAP + sheet.width, sheet.height), _PAPER)
    picture.paste(photo, (0, 0))
    picture.paste(legend, (0, photo.height + _GAP))
    picture.paste(sheet, (photo.width + _GAP, 0))
    return picture


def _outlined(image: Tensor, boxes: Tensor, labels: Tensor, height: int, background: int) -> Image.Image:
    photo = Image.fromarray(image.cpu().permute(1, 2, 0).numpy())
    scale = height / photo.height
    colors = _colors(labels)
    photo = photo.resize((max(1, round(photo.width * scale)), height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(photo)
    for label in reversed([label for label in _by_interest(labels) if label != IGNORE]):
        rows = _some(labels == label, background) if label == BACKGROUND else (labels == label).nonzero()[:, 0]
        for left, top, right, bottom in (boxes[rows] * scale).tolist():
            corners = (left, top, max(left, right - 1), max(top, bottom - 1))
            pen.rectangle(corners, outline=colors[label], width=1 if label == BACKGROUND else 2)
    return photo


def _legend(labels: Tensor, class_names: Sequence[str] | None, width: int) -> Image.Image:
    """Write the labels with their colors and counts, as many in a line as fit."""
    font = ImageFont.load_default(_TEXT)
    entries = [
        (color, f"{' '.join(label_name(label, class_names).split())} {int((labels == label).sum())}")
        for label, color in _colors(labels).items()
    ]
    across = max([font.getlength(text) for _, text in entries], default=0) + 3 * _TEXT
    columns = max(1, int(width // max(across, 1)))
    line = round(1.5 * _TEXT)
    legend = Image.new("RGB", (width, line * -(-len(entries) // columns)), _PAPER)
    pen = ImageDraw.Draw(legend)
    for place, (color, text) in enumerate(entries):
        x, y = (place % columns) * across, (place // columns) * line
        pen.rectangle((x, y + 2, x + _TEXT, y + 2 + _TEXT), fill=color)
        pen.text((x + 1.5 * _TEXT, y), text, fill=_INK, font=font)
    return legend


def _sheet(image: Tensor, boxes: Tensor, frames: Sequence[str], tile: int, height: int) -> Image.Image:
    """Lay cut patches in columns, each in a frame of its color."""
    step = tile + _GAP
    rows = max(1, height // step)
    sheet = Image.new("RGB", (max(1, step * -(-len(boxes) // rows)), max(height, step)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, patch in enumerate(crop_and_resize(image.cpu(), boxes, tile)):
        x, y = (place // rows) * step, (place % rows) * step
        pen.rectangle((x, y, x + tile + 5, y + tile + 5), fill=frames[place])
        sheet.paste(Image.fromarray(patch.permute(1, 2, 0).numpy()), (x + 3, y + 3))
    return sheet


def _by_interest(labels: Tensor) -> list[int]:
    """Return the labels that occur: classes, then background, then what is ignored."""
    found: list[int] = torch.unique(labels).tolist()
    return [
        *(label for label in found if label > 0),
        *(label for label in (BACKGROUND, IGNORE) if label in found),
    ]


def _some(chosen: Tensor, most: int) -> Tensor:
    """Return at most ``most`` of the rows that are chosen, evenly spaced."""
    rows = chosen.nonzero()[:, 0]
    return rows[:: max(1, -(-len(rows) // max(most, 1)))]


def _colors(labels: Tensor) -> dict[int, str]:
    """Return the color of each label that occurs, in the order of :func:`_by_interest`."""
    others = {BACKGROUND: _GRAY, IGNORE: _INK}
    return {
        label: others.get(label, OKABE_ITO[place % len(OKABE_ITO)])
        for place, label in enumerate(_by_interest(labels))
    }
