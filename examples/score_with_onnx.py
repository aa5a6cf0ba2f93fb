"""Score photos with what ``classifier.export("model.onnx")`` wrote: NumPy, Pillow and onnxruntime, and no torch.

python examples/score_with_onnx.py model.onnx PHOTO [PHOTO ...]
"""

import json
import math
import sys
from fractions import Fraction
from itertools import islice

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def read(path):  # (H, 3, W), upright, on white, and half too large: to cut off fractions is to round
    photo = ImageOps.exif_transpose(Image.open(path))
    if photo.mode.startswith("I"):  # 16 bits
        photo = Image.fromarray((np.asarray(photo) / 257).clip(0, 255).round().astype(np.uint8))
    photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo.convert("RGBA"))
    return np.asarray(photo.convert("RGB"), dtype=np.float32).transpose(0, 2, 1) + np.float32(0.5)


def lay(extent, side, grid):  # intervals of length side, evenly from end to end
    fewest = math.ceil(extent / side)
    count = fewest * grid["density"] if fewest > 1 else 1
    if grid["min_overlap"] is not None:
        count = 1 + math.ceil((extent - side) / (side * (1 - Fraction(grid["min_overlap"]))))
    starts = [(extent - side) * i / (count - 1) for i in range(count)] if count > 1 else [(extent - side) / 2]
    return [(float(start), float(start + side)) for start in starts]


def taps(interval, length, how):  # the pixels that an interval sees, and their weights in each of its S values
    (start, end), low, high, count = interval, 0, length, how["patch_size"]
    if how["whole_pixels"]:
        start = low = min(math.floor(start), length - 1)
        end = high = max(math.floor(end), low + 1)
    center = start + (np.arange(count) + 0.5) * (end - start) / count
    width = max((end - start) / count, 1) if how["antialias"] else 1
    seen = slice(max(math.floor(center[0] - width), low), min(math.ceil(center[-1] + width), high))
    weight = np.maximum(1 - abs(np.arange(seen.start, seen.stop) + 0.5 - center[:, None]) / width, 0)
    return seen, (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


def patches(photo, how):  # (3, S, S) each, scale by scale and column by column
    grid, (height, _, width), done = how["grid"], photo.shape, 0
    extents = [Fraction(max(n - (grid["reach"] == "last_pixel"), 1)) for n in (width, height)]
    for index, scale in enumerate(grid["scales"]):
        if grid["target"] and index >= grid["min_scales"] and done >= grid["target"]:
            return
        across, down = (lay(extent, min(extents) / Fraction(scale), grid) for extent in extents)
        done += len(across) * len(down)
        rows = [taps(interval, height, how) for interval in down]
        for columns, weight in (taps(interval, width, how) for interval in across):
            strip = photo[:, :, columns] @ weight.T  # (H, 3, S)
            yield from (np.trunc(np.tensordot(w, strip[seen], 1)).transpose(1, 0, 2) for seen, w in rows)


def score(session, how, path):  # (K,), as predict(features="exact") has them
    cut, probs, exponent = patches(read(path), how), [], how["exponent"]
    while batch := list(islice(cut, 64)):
        probs.extend(session.run(None, {"pixels": np.stack(batch)})[0].astype(np.float64))
    if math.isinf(exponent):
        return np.max(probs, axis=0)
    mean = np.mean(np.power(probs, exponent), axis=0)
    return mean * min(len(probs), how["patches"] or len(probs)) if how["reduction"] == "sum" else mean


if __name__ == "__main__":
    network = onnxruntime.InferenceSession(sys.argv[1])
    facts = json.loads(network.get_modelmeta().custom_metadata_map["transferkit"])
    for name in sys.argv[2:]:
        values = score(network, facts, name)
        for value, kind in sorted(zip(values[1:], facts["class_names"][1:], strict=True), reverse=True):
            least = facts["thresholds"].get(kind, math.nan)
            said = "yes" if value >= least else "no" if value < least else ""
            print(name, kind, f"{value:.6g}", said, sep="\t")
