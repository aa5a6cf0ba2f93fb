"""Which parameters were transferred is told by the parameters themselves, not by what they are called."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

from transferkit.errors import ArgumentError
from transferkit.finetune import transferred_parameters
from transferkit.heads import replace_head
from transferkit.transfer import TransferReport, WeightTransfer, before, freeze


def net(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(3, 2)


def groups_of(report: TransferReport, model: nn.Module) -> dict[str, set[int]]:
    groups = report.parameter_groups(model, transferred={"lr": 1e-5}, new={"lr": 1e-2})
    return {group["name"]: {id(parameter) for parameter in group["params"]} for group in groups}


def ids(*modules: nn.Module) -> set[int]:
    return {id(parameter) for module in modules for parameter in module.parameters()}


def test_a_new_layer_of_an_old_name_and_shape_is_new() -> None:
    model = net()
    report = WeightTransfer(net()).apply(model)
    head = replace_head(model, 3).module
    gc.collect()
    assert groups_of(report, model) == {"transferred": ids(model[0], model[1]), "new": ids(head)}
    assert {id(one) for one in transferred_parameters(model, report)} == ids(model[0], model[1])


@pytest.mark.parametrize(
    "wrap",
    [
        Around,
        lambda model: nn.Sequential(nn.Identity(), Around(model)),
        lambda model: torch.compile(model, backend="eager"),
        nn.DataParallel,
        lambda model: nn.ModuleDict({"student": model, "teacher": net()}),
    ],
    ids=["inside", "deep inside", "compiled", "data parallel", "beside another"],
)
def test_a_model_inside_another_is_found_wherever_it_is(wrap) -> None:
    model = net()
    report = WeightTransfer(net(), select=before("2")).apply(model)
    outer = wrap(model)
    found = groups_of(report, outer)
    assert found["transferred"] == ids(model[0], model[1])
    assert found["new"] == ids(outer) - found["transferred"]
    assert {id(one) for one in transferred_parameters(outer, report)} == found["transferred"]


def test_wrapped_before_the_transfer_is_the_same() -> None:
    model = net()
    compiled = torch.compile(model, backend="eager")
    report = WeightTransfer(net()).apply(compiled)
    for seen in (compiled, model, nn.DataParallel(model)):
        assert groups_of(report, seen) == {"transferred": ids(model)}
        assert len(transferred_parameters(seen, report.to_dict())) == 6


def test_tied_and_frozen_and_meta_parameters_are_themselves() -> None:
    model = nn.ModuleDict(
        {"embed": nn.Embedding(6, 4), "out": nn.Linear(4, 6, bias=False), "head": nn.Linear(4, 2)}
    )
    model["out"].weight = model["embed"].weight
    source = nn.ModuleDict({"embed": nn.Embedding(6, 4), "out": nn.Linear(4, 6, bias=False)})
    source["out"].weight = source["embed"].weight
    report = WeightTransfer(source, select=before("head")).apply(model)
    assert groups_of(report, model) == {"transferred": ids(model["embed"]), "new": ids(model["head"])}
    freeze(model, before("head"))
    assert groups_of(report, model) == {"new": ids(model["head"])}
    assert transferred_parameters(model, report) == []
    with torch.device("meta"):
        empty = net()
    report = WeightTransfer(net(), device="cpu").apply(empty)
    assert groups_of(report, empty) == {"transferred": ids(empty)}


def test_a_report_that_was_copied_tells_by_names_and_shapes_and_says_so() -> None:
    model = net()
    report = WeightTransfer(net(), select=before("2")).apply(model)
    for again in (
        copy.deepcopy(report),
        pickle.loads(pickle.dumps(report)),
        TransferReport.from_dict(report.to_dict()),
    ):
        assert again == report and again.parameters is None
        with pytest.warns(UserWarning, match="told by names and shapes"):
            assert groups_of(again, model) == {"transferred": ids(model[0], model[1]), "new": ids(model[2])}
    with pytest.warns(UserWarning, match="names and shapes"):
        other = nn.Sequential(
            nn.Linear(4, 7), nn.BatchNorm1d(5)
        )  # of another shape, so not what was transferred
        assert groups_of(again, other) == {"transferred": ids(other[1]), "new": ids(other[0])}


def test_a_model_that_the_report_does_not_fit_is_an_error_whose_advice_works() -> None:
    model = net()
    report = WeightTransfer(net()).apply(model)
    twin = copy.deepcopy(model)
    with pytest.raises(
        ArgumentError, match=r"give the model that apply\(\) wrote to.*from_dict\(report\.to_dict\(\)\)"
    ):
        groups_of(report, twin)
    with pytest.warns(UserWarning, match="names and shapes"):
        assert groups_of(TransferReport.from_dict(report.to_dict()), twin) == {"transferred": ids(twin)}
    with pytest.raises(
        ArgumentError,
        match=r"no parameter of this Bilinear has a name .*0\.weight is \[.*\] in the report and absent in the model",
    ):
        TransferReport.from_dict(report.to_dict()).parameters_in(nn.Bilinear(2, 2, 2))
