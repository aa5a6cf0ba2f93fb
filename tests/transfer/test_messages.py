"""What a newcomer reads when it goes wrong: what, where, both sides, and the next step that works.

The messages are written out whole, so that a change of words is seen as a reader would see it. Each next step that
a message gives is taken.
"""

from __future__ import annotations

from textwrap import dedent

import pytest
import torch
from torch import nn

from transferkit.alexnet import AlexNet
from transferkit.errors import SelectionError, TransferError
from transferkit.transfer import WeightTransfer, before, by_kind, by_name
from transferkit.transfer.handlers import ClassRows


def alexnet(classes: int = 1000) -> nn.Module:
    return AlexNet(classes, channels=(8, 8, 8, 8, 8), hidden=16, drop_rate=0.0)


def features_only() -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in alexnet().state_dict().items() if key.startswith("features")}


def message(error: type[Exception], transfer: WeightTransfer, model: nn.Module) -> str:
    with pytest.raises(error) as caught:
        transfer.apply(model)
    return str(caught.value)


def text(block: str) -> str:
    return dedent(block).strip("\n")


def test_a_wrong_layer_name():
    assert message(SelectionError, WeightTransfer(alexnet(), select=before("clasifier.6")), alexnet()) == (
        "before('clasifier.6'): no layer named 'clasifier.6' among 8; "
        "did you mean 'classifier.6', 'classifier.4' or 'classifier.1'?"
    )


def test_a_container_for_a_layer():
    assert message(SelectionError, WeightTransfer(alexnet(), select=by_name("features")), alexnet()) == (
        "by_name('features'): 'features' is no layer but holds 5; write 'features.*'"
    )


def test_one_wrong_shape_among_many():
    said = message(TransferError, WeightTransfer(alexnet()), alexnet(20))
    assert said == text(
        """
        The transfer from a model to AlexNet was refused; the model is bit for bit as it was.
        mismatched: 2 tensors of 1 layer (14 tensors fit)
          classifier.6.weight  target [20, 16]  source classifier.6.weight [1000, 16]
          classifier.6.bias    target [20]      source classifier.6.bias [1000]
        Next step, one of:
          leave what does not fit as it is: select=~by_name('classifier.6')
          convert it: handlers=[...], of those in transferkit.transfer.handlers or your own
        """
    )
    WeightTransfer(alexnet(), select=~by_name("classifier.6")).apply(alexnet(20))
    names = [str(number) for number in range(1000)]
    WeightTransfer(alexnet(), handlers=[ClassRows(names, names[:20])]).apply(alexnet(20))


def test_one_channel_where_there_were_three():
    model = alexnet()
    model.features[0] = nn.Conv2d(1, 8, 11, 4, 2)
    said = message(TransferError, WeightTransfer(alexnet()), model)
    assert "features.0.weight  target [8, 1, 11, 11]  source features.0.weight [8, 3, 11, 11]" in said
    assert "convert it: handlers=['input_channels']" in said
    WeightTransfer(alexnet(), handlers=["input_channels"]).apply(model)


def test_nothing_selected():
    rule = by_kind("conv") & by_name("classifier.*")
    assert message(SelectionError, WeightTransfer(alexnet(), select=rule), alexnet()) == (
        "(by_kind('conv') & by_name('classifier.*')) selects none of 8 layers: by_kind('conv') matches 5, "
        "by_name('classifier.*') matches 3"
    )


def test_nothing_loaded():
    model = nn.ModuleDict({"net": alexnet()})
    said = message(TransferError, WeightTransfer(alexnet().state_dict(), allow_missing="*"), model)
    assert said == text(
        """
        Nothing would be moved from a state dict to ModuleDict; the model is bit for bit as it was.
        16 tensors are selected, and all of them are missing in the source and allowed to be.
        unexpected: 8 layers of the source that nothing uses, 'features.0', 'features.3', 'features.6' and 5 more
        Next step, one of:
          find them without the target's 'net.': mapping={'net.*': '*'}
          say how names correspond: mapping={'target name': 'source name'}, or mapping='structure'
          look at what would happen: print(WeightTransfer(...).plan(model))
        """
    )
    assert len(WeightTransfer(alexnet().state_dict(), mapping={"net.*": "*"}).apply(model).copied) == 16


def test_features_only_weights_for_a_whole_model():
    said = message(TransferError, WeightTransfer(features_only(), select=before("classifier.6")), alexnet())
    assert said == text(
        """
        The transfer from a state dict to AlexNet was refused; the model is bit for bit as it was.
        missing: 4 tensors of 2 layers, selected in the target and absent in the source
          classifier.1  weight [16, 288], bias [16]  the source has no layer 'classifier.1'
          classifier.4  weight [16, 16], bias [16]   the source has no layer 'classifier.4'
        Next step:
          leave what is missing as it is: allow_missing='classifier.*' (--allow_missing 'classifier.*')
        """
    )
    transfer = WeightTransfer(features_only(), select=before("classifier.6"), allow_missing="classifier.*")
    assert len(transfer.apply(alexnet()).copied) == 10


def test_names_with_another_prefix():
    source = {f"backbone.body.{key}": tensor for key, tensor in alexnet().state_dict().items()}
    said = message(TransferError, WeightTransfer(source), alexnet())
    assert "find them under the source's 'backbone.body.': mapping={'*': 'backbone.body.*'}" in said
    assert len(WeightTransfer(source, mapping={"*": "backbone.body.*"}).apply(alexnet()).copied) == 16


def test_a_hundred_blocks_are_one_line():
    source = nn.Sequential(*(nn.Linear(2, 2) for _ in range(100)))
    target = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(100)))
    said = message(TransferError, WeightTransfer(target.state_dict()), source)
    assert "  {0-99}  bias [2]  '{0-99}' has no bias" in said
    assert len(said.splitlines()) < 10
