"""A truncated model computes what the whole one computes up to its layer, and nothing else."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from tests.backbones import lookalikes as models
from transferkit.alexnet import AlexNet
from transferkit.backbones import features_of, truncate
from transferkit.errors import ArgumentError, LayerNotFoundError
from transferkit.heads import find_head

PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
CHAIN = nn.Sequential(
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(4 * 60 * 60, 3),
).eval()


def seen(model: nn.Module, name: str, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """What the first call of a layer is given, and what it returns, in a run of the whole model."""
    calls: list[tuple[Tensor, Tensor]] = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda module, args, kwargs, output: calls.append(
            ([*args, *kwargs.values()][0].clone(), features_of(output).clone())
        ),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(pixels)
    hook.remove()
    return calls[0]


def called(model: nn.Module) -> list[str]:
    """Names of all modules that a run of the model calls."""
    names: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: names.append(name))
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        model(PIXELS)
    for hook in hooks:
        hook.remove()
    return names


@pytest.mark.parametrize("kind", [AlexNet, *models.HEADS], ids=lambda kind: kind.__name__)
def test_every_layer_of_every_kind_of_network(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = (AlexNet(10, channels=(4, 4, 4, 4, 4), hidden=8) if kind is AlexNet else kind()).eval()
    pixels = torch.randn(2, 3, 96, 96)
    ran = set(called(model)) - {""}
    inplace_follows = {name for name, module in model.named_modules() if getattr(module, "inplace", False)}
    assert len(ran) >= 5
    for name in sorted(ran):
        given, returned = seen(model, name, pixels)
        with torch.no_grad():
            assert torch.equal(features_of(truncate(model, name)(pixels)), returned), name
            if name not in inplace_follows:
                assert torch.equal(features_of(truncate(model, before=name)(pixels)), given), name


def test_what_enters_the_head_is_the_features_of_any_model() -> None:
    for kind, (_, width) in models.HEADS.items():
        model = kind().eval()
        features = truncate(model, before=find_head(model).name)(PIXELS)
        assert features.shape[:2] == (2, width)


@pytest.mark.parametrize("example", [None, PIXELS])
def test_nothing_after_the_layer_is_computed(example: Tensor | None) -> None:
    model = models.ResNet().eval()
    assert called(truncate(model, "layer1.0", example=example))[-1] == "layer1.0.relu"
    assert called(truncate(model, before="layer1.1", example=example))[-1] == "layer1.0.relu"


def test_a_chain_is_cut_into_a_chain_with_the_same_names() -> None:
    cut = truncate(CHAIN, "0.1")
    assert isinstance(cut, nn.Sequential)
    assert list(cut.state_dict()) == ["0.0.weight", "0.0.bias"]
    assert cut[0][0] is CHAIN[0][0]
    assert list(truncate(CHAIN, before="3").state_dict()) == [
        key for key in CHAIN.state_dict() if key[0] != "3"
    ]
    assert torch.equal(truncate(CHAIN, before="0.0")(PIXELS), PIXELS)


def test_the_model_is_left_as_it_was_and_its_layers_are_shared() -> None:
    model = models.ResNet().eval()
    expected, names = model(PIXELS), list(model.state_dict())
    cut = truncate(model, "layer1", example=PIXELS)
    assert torch.equal(model(PIXELS), expected)
    assert list(model.state_dict()) == names
    assert not any(module._forward_hooks for module in model.modules())
    assert set(cut.state_dict()) == {name for name in names if name.split(".")[0] in ("conv1", "bn1", "layer1")}
    assert all(cut.get_parameter(name) is model.get_parameter(name) for name, _ in cut.named_parameters())
    cut.train()
    cut(PIXELS)
    assert model.bn1.num_batches_tracked == 1 == cut.whole.bn1.num_batches_tracked
    cut.double()
    assert model.bn1.running_mean.dtype == model.conv1.weight.dtype == torch.float64


def test_without_an_example_later_layers_stay_and_with_one_they_take_no_memory() -> None:
    model = models.VGG()
    assert list(truncate(model, "features.0").state_dict()) == list(model.state_dict())
    assert list(truncate(model, "features.0", example=PIXELS).state_dict()) == [
        "features.0.weight",
        "features.0.bias",
    ]


def test_tensors_used_without_a_call_are_kept() -> None:
    # Attention reads the weights of its output projection, which is never called.
    model = models.VisionTransformer().eval()
    cut = truncate(model, before="heads.head", example=PIXELS)
    assert set(cut.state_dict()) == {key for key in model.state_dict() if not key.startswith("heads")}
    shorter = truncate(model, "encoder.layers.encoder_layer_0", example=PIXELS)
    assert "encoder.layers.encoder_layer_0.self_attn.out_proj.weight" in shorter.state_dict()
    assert "encoder.layers.encoder_layer_1.linear1.weight" not in shorter.state_dict()
    assert "class_token" in shorter.state_dict()


def test_it_is_copied_saved_and_trained_by_itself() -> None:
    torch.manual_seed(0)
    cut = truncate(models.ResNet().eval(), "layer1", example=PIXELS)
    expected = cut(PIXELS)
    twin = copy.deepcopy(cut)
    assert torch.equal(twin(PIXELS), expected)
    twin(PIXELS).sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    assert all(parameter.grad is None for parameter in cut.parameters())
    file = io.BytesIO()
    torch.save(cut, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(PIXELS), expected)
    other = truncate(models.ResNet().eval(), "layer1", example=PIXELS)
    other.load_state_dict(cut.state_dict())
    assert torch.equal(other(PIXELS), expected)
    assert twin.train().whole.training and not twin.eval().whole.training


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("example", [None, PIXELS])
def test_it_compiles_into_one_graph(example: Tensor | None) -> None:
    model = models.ResNet().eval()
    cut = truncate(model, before="fc", example=example)
    compiled = torch.compile(cut, backend="eager", fullgraph=True)
    assert torch.equal(compiled(PIXELS), cut(PIXELS))


def test_an_input_that_needs_more_than_the_example_did_is_refused() -> None:
    cut = truncate(models.Inception(), before="fc", example=PIXELS)
    cut.eval()(PIXELS)
    model = truncate(Branching(), "last", example=PIXELS)
    with pytest.raises(
        ArgumentError, match="needs a layer that was left out, because the example did not need it"
    ):
        model(-PIXELS.abs())


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bright, self.dark, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bright(x) if x.max() > 0 else self.dark(x))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            {"layer": "layer9"},
            LayerNotFoundError,
            "no module named 'layer9' in ResNet; did you mean 'layer2', 'layer1'",
        ),
        ({}, ArgumentError, "give a layer or before=layer, one of the two, got None and None"),
        ({"layer": "fc", "before": "fc"}, ArgumentError, "one of the two, got 'fc' and 'fc'"),
        ({"layer": ""}, ArgumentError, "got '', which is the model itself"),
    ],
)
def test_bad_layers_are_named(arguments: dict[str, str], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        truncate(models.ResNet(), **arguments)


def test_a_layer_that_forward_does_not_reach_is_said_so() -> None:
    with pytest.raises(ArgumentError, match="computed its output without calling 'AuxLogits.fc'"):
        truncate(models.Inception().eval(), "AuxLogits.fc")(PIXELS)


def test_half_of_efficientnet_lite() -> None:
    code = pytest.importorskip("efficientnet_lite_pytorch", reason="its code is not installed")
    model = code.EfficientNet.from_name("efficientnet-lite0").eval()
    cut = truncate(model, before="_avg_pooling")
    with torch.no_grad():
        assert torch.equal(cut(PIXELS), model.extract_features(PIXELS))
        half = truncate(model, "_blocks.7", example=PIXELS)
        assert half(PIXELS).shape == (2, 80, 4, 4)
    kept = {key.split(".")[1] for key in half.state_dict() if key.startswith("_blocks")}
    assert kept == set("01234567")
    assert len(half.whole._blocks) == len(model._blocks)
