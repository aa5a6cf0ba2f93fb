"""transformers for real: folders onto live models, heads with their labels, image processors, PEFT around a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from transformers import image_processing_utils as _  # noqa: F401  the processors need it imported

from transferkit import WeightTransfer, by_name, replace_head
from transferkit.backbones import find_preprocessing
from transferkit.errors import TransferError
from transferkit.heads import find_head, linear_head

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY = {**SIZES, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViTForImageClassification", TINY),
    "DeiT": ("DeiTForImageClassification", TINY),
    "Beit": ("BeitForImageClassification", TINY),
    "Swin": ("SwinForImageClassification", {**WINDOWS, "window_size": 4}),
    "Dinov2": ("Dinov2ForImageClassification", {**SIZES, "image_size": 32, "patch_size": 8}),
    "ResNet": (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "ConvNext": (
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    ),
    "PoolFormer": (
        "PoolFormerForImageClassification",
        {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    ),
    "Bert": ("BertForSequenceClassification", {**SIZES, "intermediate_size": 64, "vocab_size": 99}),
    "Llama": (
        "LlamaForSequenceClassification",
        {**SIZES, "intermediate_size": 64, "vocab_size": 99, "pad_token_id": 0},
    ),
}
RENAMED = ("ViT", "DeiT", "Beit", "Swin", "Dinov2")  # by transformers, as it saves


def built(family: str, seed: int, **changes: Any) -> Any:
    kind, sizes = FAMILIES[family]
    torch.manual_seed(seed)
    model = getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**sizes, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.eval()


def same(one: nn.Module, other: nn.Module) -> bool:
    values = other.state_dict()
    return all(torch.equal(value, values[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_lands_on_the_live_model(family: str, tmp_path: Path) -> None:
    source, target = built(family, 0), built(family, 1)
    source.save_pretrained(tmp_path)
    report = WeightTransfer(tmp_path).apply(target)
    assert same(source, target) and not report.unexpected
    told = [note for note in report.notes if "table" in note]
    assert len(told) == (family in RENAMED)
    by_target = {entry.target.key: entry.sources[0].key for entry in report.entries if entry.target}
    assert any(here != there for here, there in by_target.items()) == (family in RENAMED)


@pytest.mark.parametrize("family", RENAMED)
def test_a_live_model_s_own_state_dict_is_not_renamed(family: str) -> None:
    source, target = built(family, 0), built(family, 1)
    assert not WeightTransfer(source.state_dict()).apply(target).notes
    assert same(source, target)


@pytest.mark.parametrize("family", ["ViT", "Swin", "Bert"])
def test_the_base_s_folder_lands_on_a_classifier(family: str, tmp_path: Path) -> None:
    source, target = built(family, 0), built(family, 1)
    base = getattr(source, source.base_model_prefix)
    base.save_pretrained(tmp_path)
    WeightTransfer(tmp_path, select=~by_name("classifier")).apply(target)
    assert same(base, getattr(target, target.base_model_prefix))


@pytest.mark.parametrize("fault", ["gone", "unknown rules", "another signature"])
def test_a_table_of_another_form_is_refused_with_what_always_works(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import conversion_mapping

    source, target = built("ViT", 0), built("ViT", 1)
    source.save_pretrained(tmp_path)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with monkeypatch.context() as patch:
        if fault == "gone":
            patch.delattr(conversion_mapping, "get_model_conversion_mapping")
        else:
            rules = {"unknown rules": lambda model: [object()], "another signature": list}
            patch.setattr(conversion_mapping, "get_model_conversion_mapping", rules[fault])
        with pytest.raises(TransferError, match=r"WeightTransfer\(ViTForImageClassification.from_pretrained"):
            WeightTransfer(tmp_path).apply(target)
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in before.items())
    WeightTransfer(type(target).from_pretrained(tmp_path)).apply(target)
    assert same(source, target)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", [21, lambda width: linear_head(width, 21)], ids=["a number", "a head"])
def test_a_new_head_s_labels_are_the_model_s(family: str, head: Any, tmp_path: Path) -> None:
    model = built(family, 0)
    replace_head(model, head)
    config = model.config
    assert config.num_labels == len(config.id2label) == len(config.label2id) == model.num_labels == 21
    image = family not in ("Bert", "Llama")
    given = torch.randn(2, 3, 32, 32) if image else torch.randint(1, 99, (2, 8))
    assert model(given, labels=torch.tensor([1, 20])).loss.isfinite()
    if isinstance(head, int):
        model.save_pretrained(tmp_path)
        assert same(model, type(model).from_pretrained(tmp_path))


def test_a_regression_s_problem_is_forgotten_with_its_head() -> None:
    model = built("ViT", 0, num_labels=1)
    model(torch.randn(2, 3, 32, 32), labels=torch.rand(2))
    assert model.config.problem_type == "regression"
    replace_head(model, 5)
    assert model(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 4])).loss.isfinite()


# Image processors: what is found does to a color what they do.

PROCESSORS = [
    "BeitImageProcessor",
    "BitImageProcessor",
    "CLIPImageProcessor",
    "ConvNextImageProcessor",
    "DeiTImageProcessor",
    "DPTImageProcessor",
    "EfficientNetImageProcessor",
    "LevitImageProcessor",
    "MobileNetV2ImageProcessor",
    "MobileViTImageProcessor",
    "PoolFormerImageProcessor",
    "PvtImageProcessor",
    "SegformerImageProcessor",
    "SiglipImageProcessor",
    "ViTImageProcessor",
]
COLOR = (200, 60, 20)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("switched", [{}, {"do_normalize": False}, {"do_rescale": False}], ids=str)
def test_an_image_processor_is_read_as_it_works(name: str, switched: dict[str, bool]) -> None:
    processor = getattr(transformers, name)(**switched)
    pixels = processor(Image.new("RGB", (256, 256), COLOR), return_tensors="pt")["pixel_values"][0]
    found = find_preprocessing(processor)
    color = torch.tensor(COLOR, dtype=torch.uint8)[:, None, None]
    expected = pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2]
    assert torch.allclose(found.preprocessing(color)[:, 0, 0], expected.float(), rtol=1e-3, atol=1e-3)
    assert found.image_size in (tuple(pixels.shape[1:]), None)
    assert find_preprocessing(processor.to_dict()).preprocessing == found.preprocessing


# PEFT around the target.


def test_a_model_in_peft_takes_the_weights_of_the_network_inside() -> None:
    peft = pytest.importorskip("peft")
    source, target = built("ViT", 0), built("ViT", 1)
    form = {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]}
    wrapped = peft.get_peft_model(target, peft.LoraConfig(**form))
    WeightTransfer(source).apply(wrapped)
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.allclose(wrapped(pixels).logits, source(pixels).logits, atol=1e-5)


def test_heads_are_found_by_their_names() -> None:
    assert {find_head(built(family, 0)).name for family in FAMILIES} == {"classifier", "classifier.1", "score"}
