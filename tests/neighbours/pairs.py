"""Pairs of implementations of one architecture: the networks, and the user's lines from the one to the other."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import timm
import torch
import torchvision.models as tv
import transformers
from torch import Tensor, nn

from transferkit.transfer import ByStructure, TransferReport, WeightTransfer

ADAPT = {"mapping": "structure", "on_mismatch": "adapt"}
PLAIN = {"mapping": "structure"}


@dataclass(frozen=True)
class Pair:
    """Two implementations, ready to be made, and what a user writes for a transfer each way.

    Attributes:
        family: What both implement.
        names: Of the two libraries.
        networks: Make them.
        there: Arguments of the transfer from the first to the second.
        back: Arguments of the transfer from the second to the first.
        size: Side of an image.
        apart: The attribute in which the two differ, where their outputs cannot be equal.
    """

    family: str
    names: tuple[str, str]
    networks: tuple[Callable[[], nn.Module], Callable[[], nn.Module]]
    there: Mapping[str, Any] = field(default_factory=lambda: ADAPT)
    back: Mapping[str, Any] = field(default_factory=lambda: ADAPT)
    size: int = 64
    apart: str = ""

    def ways(self) -> Sequence[tuple[str, Callable[[], nn.Module], Callable[[], nn.Module], Mapping[str, Any]]]:
        """Return the name, source, target and arguments of both transfers."""
        first, second = self.names
        one, two = self.networks
        return (
            (f"{self.family}, {first} to {second}", one, two, self.there),
            (f"{self.family}, {second} to {first}", two, one, self.back),
        )


def shaken(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a network in evaluation mode whose every weight and statistic is random, and of a size that tells."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().eval()
        with torch.no_grad():
            for module in model.modules():
                buffers = [(name, b) for name, b in module.named_buffers(recurse=False) if "running" in name]
                for name, tensor in (*module.named_parameters(recurse=False), *buffers):
                    _shake(name, tensor)
    return model


def _shake(name: str, tensor: Tensor) -> None:
    noise = torch.randn_like(tensor)
    if name == "running_var":
        tensor.copy_(0.6 + noise.abs())
    elif re.search("gamma|lambda|scale", name) or (tensor.ndim == 1 and name == "weight"):
        tensor.copy_(0.8 + 0.2 * noise)
    elif tensor.ndim > 1 and name.endswith("weight") and "embedding" not in name:
        tensor.copy_(noise / max(1, tensor[0].numel()) ** 0.5)
    else:
        tensor.copy_(0.2 * noise)


def output(model: nn.Module, given: Mapping[str, Tensor] | Tensor) -> Tensor:
    """Return a network's logits, or its features where it has no head."""
    with torch.no_grad():
        found = model(**given) if isinstance(given, Mapping) else model(given)
    for name in ("logits", "pooler_output", "last_hidden_state"):
        if (value := getattr(found, name, None)) is not None:
            found = value
            break
    if isinstance(found, list):
        found = found[-1]
    if isinstance(found, Mapping):
        found = torch.cat([value.flatten() for value in found.values()])
    return found.flatten()


def transfer(
    make: Callable[[], nn.Module], other: Callable[[], nn.Module], size: int, arguments: Mapping[str, Any]
) -> tuple[float, TransferReport]:
    """Transfer for real; return the largest difference of the outputs, in parts of the largest output."""
    source, target = shaken(make, 1), shaken(other, 2)
    report = WeightTransfer(source, **arguments).apply(target)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    text = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(3))
    given = {"input_ids": text} if hasattr(source, "get_input_embeddings") and not size else images
    wanted = output(source, given)
    return float((output(target, given) - wanted).abs().max() / wanted.abs().max()), report


def known(pairs: Mapping[str | re.Pattern[str], Any], **more: Any) -> dict[str, Any]:
    """Return the arguments of a transfer by structure with some pairs given."""
    return {**ADAPT, "mapping": ByStructure(pairs), **more}


def _hf(kind: str, **options: Any) -> Callable[[], nn.Module]:
    name, _, what = kind.partition(".")
    config = getattr(transformers, f"{name}Config")
    return lambda: getattr(transformers, f"{name}{what}")(config(**options))


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, **options)


def _bert(kind: str, **more: Any) -> Callable[[], nn.Module]:
    sizes = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    pooling = {"add_pooling_layer": more.pop("add_pooling_layer")} if "add_pooling_layer" in more else {}
    config = getattr(transformers, f"{kind}Config")
    return lambda: getattr(transformers, f"{kind}Model")(config(**sizes, **more), **pooling)


_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
_TIMM_VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2}
_SWIN = {"embed_dim": 8, "window_size": 4}

_RESNETS = {
    "torchvision": lambda: tv.ResNet(tv.resnet.Bottleneck, [1, 2, 1, 1], num_classes=5),
    "timm": lambda: timm.models.ResNet(timm.models.resnet.Bottleneck, layers=[1, 2, 1, 1], num_classes=5),
    "transformers": _hf("ResNet.ForImageClassification", depths=[1, 2, 1, 1], num_labels=5),
}
_REGNET = {"hidden_sizes": [48, 104, 208, 440], "depths": [1, 3, 6, 6], "groups_width": 8}
_REGNETS = {
    "torchvision": lambda: tv.regnet_y_400mf(num_classes=5),
    "timm": _timm("regnety_004", num_classes=5),
    "transformers": _hf("RegNet.ForImageClassification", num_labels=5, **_REGNET),
}
_B0 = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "num_labels": 5}
_EFFICIENTNETS = {
    "torchvision": lambda: tv.efficientnet_b0(num_classes=5),
    "timm": _timm("efficientnet_b0", num_classes=5),
    "timm, padded as TensorFlow": _timm("tf_efficientnet_b0", num_classes=5),
    "transformers": _hf("EfficientNet.ForImageClassification", **_B0),
}
_CNBLOCKS = [
    tv.convnext.CNBlockConfig(*sizes) for sizes in ((8, 16, 1), (16, 24, 1), (24, 32, 2), (32, None, 1))
]
_CONVNEXTS = {
    "torchvision": lambda: tv.ConvNeXt(_CNBLOCKS, num_classes=5),
    "timm": lambda: timm.models.ConvNeXt(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), num_classes=5),
    "transformers": _hf(
        "ConvNext.ForImageClassification", num_labels=5, depths=[1, 1, 2, 1], hidden_sizes=[8, 16, 24, 32]
    ),
}
_MOBILENETS = {
    "torchvision": lambda: tv.mobilenet_v3_small(num_classes=5),
    "timm": _timm("mobilenetv3_small_100", num_classes=5, bn_eps=1e-3),
}
_VGGS = {"torchvision": lambda: tv.vgg11_bn(num_classes=5), "timm": _timm("vgg11_bn", num_classes=5)}
_DENSENETS = {
    "torchvision": lambda: tv.DenseNet(8, (2, 2, 3, 2), 16, num_classes=5),
    "timm": lambda: timm.models.DenseNet(8, (2, 2, 3, 2), num_classes=5),
}

_VITS = {
    "torchvision": lambda: tv.VisionTransformer(32, 16, 2, 2, 16, 64, num_classes=5),
    "timm": lambda: timm.models.VisionTransformer(**_TIMM_VIT, num_classes=5),
    "transformers": _hf(
        "ViT.ForImageClassification", **_VIT, intermediate_size=64, num_labels=5, layer_norm_eps=1e-6
    ),
}
_SWINS = {
    "torchvision": lambda: tv.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=5),
    "timm": lambda: timm.models.SwinTransformer(
        img_size=32, depths=(2, 2), num_heads=(2, 2), num_classes=5, **_SWIN
    ),
    "transformers": _hf(
        "Swin.ForImageClassification", image_size=32, depths=[2, 2], num_heads=[2, 2], num_labels=5, **_SWIN
    ),
}


def _pair(family: str, networks: Mapping[str, Any], one: str, two: str, **more: Any) -> Pair:
    return Pair(family, (one, two), (networks[one], networks[two]), **more)


_TV_HF_VIT = {
    "vit.layers.*.layernorm_before": "encoder.layers.encoder_layer_*.ln_1",
    "vit.layers.*.layernorm_after": "encoder.layers.encoder_layer_*.ln_2",
}
_HF_TV_VIT = {there: here for here, there in _TV_HF_VIT.items()} | {
    "conv_proj": "vit.embeddings.patch_embeddings.projection"
}
_TIMM_HF_VIT = {
    "vit.layers.*.layernorm_before": "blocks.*.norm1",
    "vit.layers.*.layernorm_after": "blocks.*.norm2",
}
_HF_TIMM_VIT = {there: here for here, there in _TIMM_HF_VIT.items()}


def _turned(rules: Mapping[str, str]) -> dict[str, str]:
    return {there: here for here, there in rules.items()}


_TV_TIMM_SWIN = {"layers.1.downsample.*": "features.2.*"}
_TIMM_HF_SWIN = {
    "swin.embeddings.norm": "patch_embed.norm",
    "swin.encoder.layers.*.layernorm_before": "layers.*.norm1",
    "swin.encoder.layers.*.layernorm_after": "layers.*.norm2",
    "swin.encoder.layers.*.attention.relative_position_bias": "layers.*.attn",
    "swin.encoder.layers.0.downsample.*": "layers.1.downsample.*",
}
_TV_HF_SWIN = {
    "swin.embeddings.norm": "features.0.2",
    "swin.encoder.layers.0.blocks.*.layernorm_before": "features.1.*.norm1",
    "swin.encoder.layers.0.blocks.*.layernorm_after": "features.1.*.norm2",
    "swin.encoder.layers.1.blocks.*.layernorm_before": "features.3.*.norm1",
    "swin.encoder.layers.1.blocks.*.layernorm_after": "features.3.*.norm2",
    "swin.encoder.layers.0.blocks.*.attention.relative_position_bias": "features.1.*.attn",
    "swin.encoder.layers.1.blocks.*.attention.relative_position_bias": "features.3.*.attn",
    "swin.encoder.layers.0.downsample.*": "features.2.*",
}
_TIMM_HF_CLIP = {
    "embeddings.patch_embedding": "patch_embed.proj",
    "pre_layrnorm": "norm_pre",
    "encoder.layers.*.layer_norm1": "blocks.*.norm1",
    "encoder.layers.*.layer_norm2": "blocks.*.norm2",
}
_HF_RESNET = {
    f"resnet.encoder.stages.{stage}.layers.0.shortcut.{name}": f"layer{stage + 1}.0.downsample.{place}"
    for stage in range(4)
    for place, name in enumerate(("convolution", "normalization"))
}
_TV_REGNET = {
    f"s{stage}.b1.downsample.{name}": f"trunk_output.block{stage}.block{stage}-0.proj.{place}"
    for stage in range(1, 5)
    for place, name in enumerate(("conv", "bn"))
}
_HF_REGNET = {
    f"s{stage}.b1.downsample.{name}": f"regnet.encoder.stages.{stage - 1}.layers.0.shortcut.{theirs}"
    for stage in range(1, 5)
    for name, theirs in (("conv", "convolution"), ("bn", "normalization"))
}
_VGG = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3"}
_INDEX = {"keep": "*.relative_position_index"}

PAIRS = [
    _pair("ViT", _VITS, "torchvision", "timm", size=32, back=known({"conv_proj": "patch_embed.proj"})),
    _pair(
        "ViT", _VITS, "torchvision", "transformers", size=32, there=known(_TV_HF_VIT), back=known(_HF_TV_VIT)
    ),
    _pair("ViT", _VITS, "timm", "transformers", size=32, there=known(_TIMM_HF_VIT), back=known(_HF_TIMM_VIT)),
    _pair(
        "Swin",
        _SWINS,
        "torchvision",
        "timm",
        size=32,
        there=known(_TV_TIMM_SWIN),
        back=known(_turned(_TV_TIMM_SWIN), **_INDEX),
    ),
    _pair(
        "Swin",
        _SWINS,
        "torchvision",
        "transformers",
        size=32,
        there=known(_TV_HF_SWIN),
        back=known(_turned(_TV_HF_SWIN), **_INDEX),
    ),
    _pair(
        "Swin",
        _SWINS,
        "timm",
        "transformers",
        size=32,
        there=known(_TIMM_HF_SWIN),
        back=known(_turned(_TIMM_HF_SWIN)),
    ),
    Pair(
        "DINOv2",
        ("timm", "transformers"),
        (
            lambda: timm.models.VisionTransformer(**_TIMM_VIT, num_classes=0, init_values=1e-5),
            _hf("Dinov2.Model", **_VIT),
        ),
        there={**ADAPT, "allow_missing": "*mask_token"},
        size=32,
    ),
    Pair(
        "CLIP",
        ("timm", "transformers"),
        (
            lambda: timm.models.VisionTransformer(
                **_TIMM_VIT,
                num_classes=0,
                pre_norm=True,
                norm_layer=partial(nn.LayerNorm, eps=1e-5),
                act_layer="quick_gelu",
            ),
            _hf("CLIPVision.Model", **_VIT, intermediate_size=64),
        ),
        there=known(_TIMM_HF_CLIP),
        back=known(_turned(_TIMM_HF_CLIP)),
        size=32,
    ),
    _pair("ResNet", _RESNETS, "torchvision", "timm"),
    *(
        _pair("ResNet", _RESNETS, one, "transformers", there=known(_HF_RESNET), back=known(_turned(_HF_RESNET)))
        for one in ("torchvision", "timm")
    ),
    _pair("RegNet", _REGNETS, "torchvision", "timm", there=known(_TV_REGNET), back=known(_turned(_TV_REGNET))),
    _pair("RegNet", _REGNETS, "torchvision", "transformers"),
    _pair("RegNet", _REGNETS, "timm", "transformers", there=known(_turned(_HF_REGNET)), back=known(_HF_REGNET)),
    _pair("EfficientNet", _EFFICIENTNETS, "torchvision", "timm"),
    _pair("EfficientNet", _EFFICIENTNETS, "timm, padded as TensorFlow", "transformers"),
    _pair(
        "EfficientNet",
        _EFFICIENTNETS,
        "torchvision",
        "transformers",
        apart="padding (TensorFlow's), epsilon (1e-3)",
    ),
    *(_pair("ConvNeXt", _CONVNEXTS, *two) for two in combinations(_CONVNEXTS, 2)),
    _pair("MobileNetV3", _MOBILENETS, "torchvision", "timm"),
    _pair("VGG", _VGGS, "torchvision", "timm", size=224, there=known(_VGG), back=known(_turned(_VGG))),
    _pair("DenseNet", _DENSENETS, "torchvision", "timm"),
    Pair(
        "BERT family of transformers",
        ("BERT", "ELECTRA"),
        (_bert("Bert", add_pooling_layer=False), _bert("Electra", embedding_size=32)),
        there={},
        back={},
        size=0,
    ),
    Pair(
        "ResNet of a detector",
        ("timm", "torchvision"),
        (
            lambda: timm.models.FeatureListNet(
                timm.models.ResNet(timm.models.resnet.BasicBlock, layers=[2, 2, 2, 2]), out_indices=(4,)
            ),
            lambda: (
                tv.detection.backbone_utils.resnet_fpn_backbone(
                    backbone_name="resnet18", weights=None, returned_layers=[4], norm_layer=nn.BatchNorm2d
                ).body
            ),
        ),
        there={},
        back={},
    ),
]
