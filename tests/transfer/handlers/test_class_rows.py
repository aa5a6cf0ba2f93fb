"""A head for other classes takes the rows of those it shares."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transferkit.errors import ArgumentError, HandlerError
from transferkit.transfer import WeightTransfer
from transferkit.transfer.handlers import ClassRows

IMAGENET = ["cat", "robin", "jay", "sofa"]


def head(classes: int) -> nn.Linear:
    return nn.Linear(5, classes)


def test_rows_are_picked_merged_and_kept():
    source, target = head(4), head(4)
    own = target.weight[0].clone()
    rows = ClassRows(
        IMAGENET, ["background", "bird", "cat", "sofa"], merge={"bird": ["robin", "jay"]}, new=["background"]
    )
    report = WeightTransfer(source, handlers={"": rows}).apply(target)
    assert torch.equal(target.weight[0], own)
    assert torch.allclose(target.weight[1], source.weight[1:3].mean(dim=0))
    assert torch.equal(target.weight[2:], source.weight[[0, 3]])
    assert torch.equal(target.bias[2:], source.bias[[0, 3]])
    assert report.adapted == ("weight", "bias")


def test_the_merged_logit_is_the_mean_of_the_logits():
    source, target = head(4), head(1)
    WeightTransfer(source, handlers=[ClassRows(IMAGENET, ["bird"], merge={"bird": ["robin", "jay"]})]).apply(
        target
    )
    features = torch.randn(3, 5)
    assert torch.allclose(target(features)[:, 0], source(features)[:, 1:3].mean(dim=1), atol=1e-6)


def test_every_unknown_class_is_named():
    rows = ClassRows(IMAGENET, ["sfa", "cat", "person"])
    with pytest.raises(
        HandlerError, match=r"(?s)sfa: the source has no class 'sfa'; did you mean 'sofa'.*person"
    ):
        WeightTransfer(head(4), handlers=[rows]).apply(head(3))


def test_by_name_it_asks_for_its_arguments():
    with pytest.raises(ArgumentError, match="give ClassRows"):
        WeightTransfer(head(4), handlers=["class_rows"]).apply(head(3))


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        (["crane", "cat", "crane"], ["crane", "cat"], r"crane: rows 0 and 2 of the source are both 'crane'"),
        (["cat", "jay", "sofa"], ["cat", "cat"], r"cat: rows 0 and 1 of the target have that name"),
    ],
)
def test_a_name_of_several_rows_is_refused(source, target, says):
    model = head(2)
    old = model.weight.clone()
    with pytest.raises(HandlerError, match=says):
        WeightTransfer(head(3), handlers={"": ClassRows(source, target)}).apply(model)
    assert torch.equal(model.weight, old)


def test_a_name_of_several_rows_that_no_class_wants_is_no_matter():
    source, target = head(3), head(1)
    WeightTransfer(source, handlers=[ClassRows(["crane", "cat", "crane"], ["cat"])]).apply(target)
    assert torch.equal(target.weight[0], source.weight[1])


def test_what_merge_and_new_name_must_be_classes_of_the_target():
    rows = ClassRows(IMAGENET, ["cat", "dog"], merge={"brid": ["jay"]}, new=["dgo", "dog"])
    with pytest.raises(HandlerError, match=r"brid: no class of the target(?s:.*)dgo: no class"):
        WeightTransfer(head(4), handlers=[rows]).apply(head(2))
