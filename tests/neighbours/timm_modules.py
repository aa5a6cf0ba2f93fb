"""A small network of each of timm's modules, from its own files onto itself, with what else is asked of it.

    python -m tests.neighbours.timm_modules [--modules vgg,resnet]      all of them unless named; half an hour on a core

in the environment that .ci/neighbours makes. A line a network; the exit status tells whether all held.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from transferkit import TransferKitError, WeightTransfer, replace_head
from transferkit.backbones import find_preprocessing, fold_batch_norms
from transferkit.heads import find_head

# One a module, in the order of timm.list_modules(): the smallest of those with the smallest names.
NETWORKS = [
    "beit_base_patch16_224",
    "halonet_h1",
    "test_byobnet",
    "cait_xxs24_224",
    "coat_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "test_convnext",
    "cpubone_nano",
    "crossvit_tiny_240",
    "csatv2",
    "cs3darknet_focus_s",
    "cspnext_tiny",
    "davit_tiny",
    "deepseek_vit_412m",
    "deit_tiny_patch16_224",
    "densenet121",
    "dla46x_c",
    "dpn48b",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "test_efficientnet",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "vit_tiny_patch16_dinov3_qkvb",
    "fasternet_t0",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "gemma4_vit_167m",
    "ghostnet_050",
    "hardcorenas_b",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "sam2_hiera_tiny",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnetv2_small",
    "levit_128s",
    "lowformer_b0",
    "test_mambaout",
    "test_coatnet",
    "poolformer_s12",
    "gmlp_ti16_224",
    "mobilenetv3_small_050",
    "mobilenetv5_base",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "naflexvit_base_patch16_siglip",
    "nasnetalarge",
    "nest_tiny",
    "nextvit_small",
    "test_nfnet",
    "pit_ti_224",
    "pnasnet5large",
    "pvt_v2_b0",
    "qwen3_vit_88m",
    "rdnet_tiny",
    "regnetx_004_tv",
    "repghostnet_050",
    "repvit_m1",
    "res2next50",
    "resnest14d",
    "test_resnet",
    "resnetv2_18",
    "rexnet_100",
    "selecsls42",
    "legacy_seresnet18",
    "sequencer2d_s",
    "shvit_s1",
    "skresnet18",
    "starnet_s050",
    "swiftformer_xs",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224",
    "tiny_vit_5m_224",
    "tnt_s_legacy_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "vgg11",
    "visformer_tiny",
    "test_vit",
    "vit_tiny_r_s16_p8_224",
    "test_vit_relpos",
    "samvit_base_patch16_224",
    "vitamin_small_224",
    "volo_d1_224",
    "ese_vovnet19b_slim_dw",
    "legacy_xception",
    "xception41p",
    "xcit_nano_12_p8_224",
]


def shaken(name: str, seed: int = 0) -> torch.nn.Module:
    """Build a network with random weights and statistics that differ everywhere."""
    torch.manual_seed(seed)
    model: torch.nn.Module = timm.create_model(name)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.01)
    return model.eval()


def landed(model: Any, name: str, folder: Path) -> list[str]:
    """Return the files of the model that did not land whole on another of its kind."""
    values = model.state_dict()
    torch.save(values, folder / "model.pth")
    save_file({key: value.clone().contiguous() for key, value in values.items()}, folder / "model.safetensors")
    wrong = []
    for file in ("model.pth", "model.safetensors"):
        other = timm.create_model(name)
        WeightTransfer(folder / file).apply(other)
        same = all(torch.equal(value, other.state_dict()[key]) for key, value in values.items())
        wrong += [] if same else [f"{file} differs"]
    return wrong


def head_of(model: Any, pixels: torch.Tensor) -> tuple[str, list[str]]:
    """Replace the head; return what was done, and what is wrong with it."""
    try:
        found = find_head(model)
    except TransferKitError as error:
        return str(error).split(";")[0], [] if "several heads" in str(error) else [str(error)]
    wrong = [] if found.module is model.get_classifier() else [f"{found.name} is not its classifier"]
    replace_head(model, 21)
    with torch.no_grad():
        shape = tuple(model(pixels).shape)
    return found.name, wrong + ([] if shape == (len(pixels), 21) else [f"gives {shape}"])


def folded(model: Any, pixels: torch.Tensor) -> list[str]:
    """Return why the model cannot be folded, where it cannot."""
    try:
        fold_batch_norms(model, pixels)
    except TransferKitError as error:
        return [f"not folded: {str(error)[:90]}"]
    return []


def preprocessed(model: Any) -> list[str]:
    """Return what timm's own data configuration says otherwise."""
    config, found = timm.data.resolve_model_data_config(model), find_preprocessing(model)
    own = (tuple(config["mean"]), tuple(config["std"]), tuple(config["input_size"][1:]))
    same = own == (found.preprocessing.mean, found.preprocessing.std, found.image_size)
    return [] if same else [f"{found} is not {own}"]


def main(modules: list[str] | None = None) -> int:
    """Try the networks of the modules that are named, or all; return how many do not hold."""
    failed = 0
    assert len(NETWORKS) == len(timm.list_modules()), "a network is missing, or there is one too many"
    for module, name in zip(timm.list_modules(), NETWORKS, strict=True):
        if modules and module not in modules:
            continue
        model = shaken(name)
        pixels = torch.randn(1, *timm.data.resolve_model_data_config(model)["input_size"])
        with tempfile.TemporaryDirectory() as folder:
            wrong = landed(model, name, Path(folder)) + preprocessed(model)
        note = folded(model, pixels)
        head, more = head_of(model, pixels)
        failed += bool(wrong + more)
        print(module, name, head, *wrong, *more, *note, sep=" | ", flush=True)
    return failed


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", type=lambda text: text.split(","), help="separated by commas")
    sys.exit(main(parser.parse_args().modules))
