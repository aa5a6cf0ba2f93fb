"""The transfer of chosen layers: what it moves, what it leaves, and what it refuses."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
import torch
from torch import nn

from transferkit.alexnet import AlexNet
from transferkit.errors import ArgumentError, SelectionError, TransferError
from transferkit.transfer import TransferReport, WeightTransfer, before, by_name, every, transfer_layer


def mlp(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_features_only_weights_name_what_is_missing_and_how_to_allow_it():
    donor, model = AlexNet(10, hidden=16), AlexNet(10, hidden=16)
    features = {key: value for key, value in donor.state_dict().items() if key.startswith("features")}
    old = snapshot(model)
    with pytest.raises(TransferError) as caught:
        WeightTransfer(features, select=before("classifier.6")).apply(model)
    message = str(caught.value)
    assert "bit for bit as it was" in message
    assert "classifier.1  weight [16, 9216], bias [16]" in message
    assert "classifier.4  weight [16, 16], bias [16]" in message
    assert "allow_missing='classifier.*' (--allow_missing 'classifier.*')" in message
    assert "classifier.6" not in message
    assert unchanged(model, old)


@pytest.mark.parametrize(
    "allow", ["classifier.*", ["classifier.1", "classifier.4"], by_name("classifier.*")], ids=str
)
def test_what_is_allowed_to_be_missing_stays(allow):
    donor, model = AlexNet(10, hidden=16), AlexNet(10, hidden=16)
    features = {key: value for key, value in donor.state_dict().items() if key.startswith("features")}
    old = snapshot(model)
    report = WeightTransfer(features, select=before("classifier.6"), allow_missing=allow).apply(model)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, features.get(key, old[key]))
    assert len(report.copied) == 10
    assert report.missing == (
        "classifier.1.weight",
        "classifier.1.bias",
        "classifier.4.weight",
        "classifier.4.bias",
    )
    assert report.skipped == ("classifier.6.weight", "classifier.6.bias")
    assert report.coverage.tensors == (10, 14)


def test_parameters_keep_their_identity():
    donor, model = mlp(2, 3), mlp(2, 3)
    weight = model[0].weight
    WeightTransfer(donor).apply(model)
    assert model[0].weight is weight
    assert weight.data_ptr() != donor[0].weight.data_ptr()


def test_every_mismatch_is_shown_at_once_with_both_sides():
    donor, model = mlp(2, 3, 4, 5), mlp(2, 3, 7, 5)
    old = snapshot(model)
    with pytest.raises(TransferError) as caught:
        WeightTransfer(donor).apply(model)
    message = str(caught.value)
    assert "mismatched: 3 tensors of 2 layers (3 tensors fit)" in message
    assert re.search(r"1.weight +target \[7, 3\] +source 1.weight \[4, 3\]", message)
    assert re.search(r"2.weight +target \[5, 7\] +source 2.weight \[5, 4\]", message)
    assert "~by_name('1', '2')" in message
    assert unchanged(model, old)


def test_moving_nothing_is_an_error():
    with pytest.raises(TransferError, match="Nothing would be moved"):
        WeightTransfer({"other.weight": torch.zeros(1)}, allow_missing="*").apply(mlp(2, 3))
    with pytest.raises(SelectionError, match=r"allow_missing matches no layer(?s:.*)did you mean '0'"):
        WeightTransfer(mlp(2, 3), allow_missing="00").apply(mlp(2, 3))


def test_order_pairs_the_ith_with_the_ith_and_checks_shapes():
    donor = {"conv1.weight": torch.ones(3, 2), "conv1.bias": torch.ones(3), "fc.weight": torch.ones(4, 3)}
    model = mlp(2, 3, 4)
    report = WeightTransfer(donor, mapping="order", allow_missing="1.bias").apply(model)
    assert report.copied == ("0.weight", "0.bias", "1.weight")
    with pytest.raises(TransferError, match="mismatched"):
        WeightTransfer(donor, mapping="order", allow_missing="1.bias").apply(mlp(3, 3, 4))
    with pytest.raises(TransferError, match="the source has only 2 layers"):
        WeightTransfer(donor, mapping="order", allow_missing="1.bias").apply(mlp(2, 3, 4, 5))


@pytest.mark.parametrize(
    "mapping",
    [
        {"0": "body.first", "1": "body.second"},
        {re.compile(r"(\d)"): r"x\1"},
        {"*": "layers.*"},
        lambda name: f"layers.{name}",
    ],
    ids=["names", "regex", "glob", "function"],
)
def test_renaming(mapping):
    donor, model = mlp(2, 3, 4), mlp(2, 3, 4)
    names = {"0": "body.first", "1": "body.second"}
    if not isinstance(mapping, dict) or "0" not in mapping:
        names = {n: f"layers.{n}" for n in names}
    if isinstance(mapping, dict) and isinstance(next(iter(mapping)), re.Pattern):
        names = {n: f"x{n}" for n in ("0", "1")}
    source = {f"{names[key[0]]}{key[1:]}": value for key, value in donor.state_dict().items()}
    report = WeightTransfer(source, mapping=mapping).apply(model)
    assert len(report.copied) == 4
    assert unchanged(model, donor.state_dict())


def test_a_mapping_rule_that_matches_nothing_is_an_error():
    with pytest.raises(TransferError, match="'hed': 'fc'"):
        WeightTransfer(mlp(2, 3), mapping={"hed": "fc"}).apply(mlp(2, 3))
    with pytest.raises(ArgumentError, match=r"mapping\('0'\) must be the name of a source layer, got None"):
        WeightTransfer(mlp(2, 3), mapping=lambda name: None).apply(mlp(2, 3))
    with pytest.raises(ArgumentError, match="mapping must be"):
        WeightTransfer(mlp(2, 3), mapping="names").apply(mlp(2, 3))


def test_half_precision_is_a_cast_and_integers_are_a_mismatch():
    donor, model = mlp(2, 3), mlp(2, 3).half()
    report = WeightTransfer(donor).apply(model)
    assert report.cast == ("0.weight", "0.bias")
    assert torch.equal(model[0].weight, donor[0].weight.half())
    counts = {"0.weight": torch.ones(3, 2, dtype=torch.int64), "0.bias": torch.zeros(3)}
    with pytest.raises(TransferError, match="another kind of number"):
        WeightTransfer(counts).apply(mlp(2, 3))


def test_report_round_trips_through_json():
    report = WeightTransfer(mlp(2, 3, 4), select=before("1")).apply(mlp(2, 3, 4))
    assert TransferReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_plan_is_what_apply_does_and_writes_nothing():
    transfer, model = WeightTransfer(mlp(2, 3, 4), select=before("1")), mlp(2, 3, 4)
    old = snapshot(model)
    plan = transfer.plan(model)
    assert unchanged(model, old)
    report = transfer.apply(model)
    assert plan.entries == report.entries
    assert transfer.plan(model) == plan
    assert "before('1') matches 1 layer" in str(plan)


def test_tied_weights_stay_tied():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "out": nn.Linear(4, 5, bias=False)})
    model["out"].weight = model["embed"].weight
    report = WeightTransfer({"embed.weight": torch.ones(5, 4)}, select=every()).apply(model)
    assert report.copied == ("embed.weight",)
    assert report.tied == ("out.weight",)
    assert model["out"].weight is model["embed"].weight
    assert (model["out"].weight == 1).all()


def test_transfer_layer():
    donor, layer = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
    transfer_layer(layer, donor)
    assert torch.equal(layer.weight, donor.weight)
    with pytest.raises(TransferError, match="mismatched"):
        transfer_layer(layer, nn.Conv2d(1, 8, 3))


def test_real_alexnet_features(shared):
    model = AlexNet(20)
    path = shared / "weights" / "alexnet_features.pth"
    report = WeightTransfer(path, select=by_name("features.*")).apply(model)
    source = torch.load(path, weights_only=True)
    assert report.coverage.elements == (2_469_696, 2_469_696)
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in source.items())
