"""A fitted network as one file for other programs: ONNX, or torch's own exported program."""

from __future__ import annotations

import copy
import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transferkit.backbones import logits_of
from transferkit.errors import ArgumentError, MissingExtraError, require
from transferkit.files import require_writable, write_atomically
from transferkit.finetune._fitted import Fitted
from transferkit.finetune.card import Card
from transferkit.preprocessing import _gain_and_offset
from transferkit.sampler import AllPatches

Exported = tuple[bytes, Callable[[Tensor], Tensor]]  # the file's content, and the network as read back from it

_TOLERANCE = 1e-4  # between probabilities of the exported and the live network


class _PixelsToProbs(nn.Module):
    """Preprocessing, network and objective: (B, 3, S, S) float32 pixels in 0..255 to (B, K) probabilities."""

    def __init__(self, fitted: Fitted) -> None:
        super().__init__()
        self.network = copy.deepcopy(fitted.model).cpu().float().eval()
        self.objective, self.bgr = fitted.protocol.objective, fitted.preprocessing.channel_order == "BGR"
        gain, offset = _gain_and_offset(fitted.preprocessing, torch.float32, torch.device("cpu"))
        self.gain, self.offset = nn.Buffer(gain.clone()), nn.Buffer(offset.clone())

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = pixels.flip(1) if self.bgr else pixels
        return self.objective.probs(logits_of(self.network(pixels * self.gain + self.offset)))


def export_network(fitted: Fitted, card: Card, path: str | os.PathLike[str]) -> Path:
    """Write the network that scores patches; refuse one that computes anything else than the classifier does."""
    path, size, kind = Path(path), fitted.protocol.patch_size, type(fitted.model).__name__
    require(path.suffix in _FORMATS, "path", f"a file that ends in {' or '.join(_FORMATS)}", str(path))
    module = _PixelsToProbs(fitted)
    # Two patches: torch would take a batch of one for a constant.
    pixels = torch.randint(256, (2, 3, size, size), generator=torch.Generator().manual_seed(0)).float()
    how = {"args": (pixels,), "dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    facts = {"transferkit": json.dumps(scoring_facts(fitted, card)), "card": json.dumps(card.to_dict())}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's exporters warn about their own parts
        try:
            content, exported = _FORMATS[path.suffix](module, how, facts)
        except MissingExtraError:
            raise
        except Exception as error:  # whatever torch cannot trace
            raise ArgumentError(
                f"torch cannot export this {kind} to {path}: {error}; what its forward must keep to is at "
                "https://docs.pytorch.org/docs/stable/export.html"
            ) from error
        for batch in (pixels, pixels.flip(3)[:1]):
            wanted = module.objective.probs(logits_of(module.network(fitted.preprocessing(batch))))
            difference = float((exported(batch) - wanted).abs().max())
            if not difference <= _TOLERANCE:  # also for NaN
                raise ArgumentError(
                    f"{path} is not written: exported, this {kind} gives {len(batch)} random patches probabilities "
                    f"that differ by {difference:.2g}, more than {_TOLERANCE:g}; keep it with classifier.save"
                )
    return write_atomically(require_writable(path), lambda file: file.write(content))


def scoring_facts(fitted: Fitted, card: Card) -> dict[str, Any]:
    """Return all that a program needs to score a photo with the network, as plain values."""
    protocol, grid = fitted.protocol, asdict(fitted.protocol.grid)
    grid["scales"] = [str(scale) for scale in grid["scales"]]  # 1.3 and 13/10 are exact as they are written
    grid["min_overlap"] = None if grid["min_overlap"] is None else str(grid["min_overlap"])
    same = ("patch_size", "whole_pixels", "antialias", "exponent", "reduction")
    return {
        "grid": grid,
        **{name: getattr(protocol, name) for name in same},
        "patches": None if isinstance(protocol.test_balance, AllPatches) else protocol.patches_per_image,
        "class_names": list(fitted.class_names),
        "thresholds": card.thresholds("exact"),
    }


def _onnx(module: nn.Module, how: dict[str, Any], facts: dict[str, str]) -> Exported:
    try:
        _, _, runtime = map(importlib.import_module, ("onnx", "onnxscript", "onnxruntime"))
    except ImportError as error:
        raise MissingExtraError(
            f"ONNX needs three packages ({error}): pip install transferkit[onnx]; a .pt2 file needs none of them"
        ) from error
    # It tells of each package that torch knows and nobody asked for.
    logging.getLogger("torch.onnx._internal.exporter._registration").disabled = True
    names: dict[str, Any] = {"input_names": ["pixels"], "output_names": ["probs"], "verbose": False}
    program: Any = torch.onnx.export(module, dynamo=True, **how, **names)
    program.model.metadata_props.update(facts)
    content: bytes = program.model_proto.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda batch: torch.from_numpy(session.run(None, {"pixels": batch.numpy()})[0])


def _exported_program(module: nn.Module, how: dict[str, Any], facts: dict[str, str]) -> Exported:
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, **how), file, extra_files=dict(facts))
    file.seek(0)
    return file.getvalue(), torch.export.load(file).module()


_FORMATS = {".onnx": _onnx, ".pt2": _exported_program}
