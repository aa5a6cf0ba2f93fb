from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from transferkit.checkpoints import read_checkpoint
from transferkit.errors import CheckpointError

PLAIN = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.zeros(2)}


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module", "net", "something else"])
def test_the_state_dict_is_found_under_any_single_key(key: str) -> None:
    checkpoint = read_checkpoint({"epoch": 7, key: PLAIN, "best": torch.tensor(0.5), "args": {"lr": 0.1}})
    assert checkpoint.names == ("fc",)
    assert checkpoint.metadata == {"epoch": 7, "best": 0.5, "args.lr": 0.1}
    assert checkpoint.notes == ()


def test_a_second_copy_is_named_and_can_be_asked_for() -> None:
    ema = {key: value + 1 for key, value in PLAIN.items()}
    saved = {"model_ema": ema, "model": PLAIN}
    first = read_checkpoint(saved)
    assert torch.equal(first["fc"].tensors["bias"], torch.zeros(2))
    assert "key='model_ema'" in first.notes[0]
    assert torch.equal(read_checkpoint(saved, key="model_ema")["fc"].tensors["bias"], torch.ones(2))


def test_several_state_dicts_without_a_usual_name_are_read_under_their_own() -> None:
    saved = {"generator": PLAIN, "discriminator": {**PLAIN}}
    assert read_checkpoint(saved).names == ("generator.fc", "discriminator.fc")
    assert read_checkpoint(saved, key="generator").names == ("fc",)
    with pytest.raises(CheckpointError, match="did you mean 'generator'"):
        read_checkpoint(saved, key="generater")


def test_nested_wrappers_and_extra_state() -> None:
    assert read_checkpoint({"state": {"model": PLAIN}}).names == ("fc",)
    extra = {**PLAIN, "fc._extra_state": {"scale": torch.ones(1)}}
    checkpoint = read_checkpoint(extra)
    assert checkpoint.names == ("fc",)
    assert "left out what is not a tensor: fc._extra_state" in checkpoint.notes


def test_nothing_to_read_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="no tensor in it, at any depth"):
        read_checkpoint({"epoch": 3})


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module.module."]
)
def test_prefixes_of_wrappers_are_set_aside(prefix: str) -> None:
    checkpoint = read_checkpoint({prefix + key: value for key, value in PLAIN.items()})
    assert list(checkpoint.state_dict()) == list(PLAIN)
    assert "set aside the prefixes of wrappers" in checkpoint.notes[0]


def test_prefixes_stay_where_layers_would_collide() -> None:
    both = {**PLAIN, **{f"module.{key}": value + 1 for key, value in PLAIN.items()}}
    assert read_checkpoint(both).names == ("fc", "module.fc")


def test_quantized_and_packed_tensors_are_refused_by_name() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls quantized tensors deprecated
        quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    with pytest.raises(CheckpointError, match=r"fc\.weight \(quantized qint8 tensor\).*dequantize"):
        read_checkpoint({"fc.weight": quantized})
    with pytest.raises(CheckpointError, match=r"l\.qweight \(GPTQ or AWQ"):
        read_checkpoint({"l.qweight": torch.ones(2, dtype=torch.int32)})
    with pytest.raises(CheckpointError, match="sparse_coo"):
        read_checkpoint({"fc.weight": torch.ones(2, 2).to_sparse()})


def test_a_module_inside_a_dict_is_its_state_dict() -> None:
    assert read_checkpoint({"model": nn.Sequential(nn.Linear(2, 2)), "epoch": 1}).names == ("0",)


def test_states_of_other_things_are_no_second_choice() -> None:
    saved = {"model": PLAIN, "sampler": {"generator": torch.zeros(5)}, "history": {"loss": torch.ones(3)}}
    checkpoint = read_checkpoint(saved)
    assert checkpoint.names == ("fc",)
    assert checkpoint.notes == (
        "took the state dict under 'model'; the file also holds key='sampler', key='history'",
    )
    assert read_checkpoint(saved, key="history").state_dict().keys() == {"loss"}


def test_a_single_layers_state_dict_is_one() -> None:
    assert read_checkpoint({"model": {"weight": torch.ones(2, 2)}, "epoch": 1}).names == ("",)
    assert read_checkpoint({"weight": torch.ones(2, 2)}).names == ("",)


def test_arrays_in_a_dict_become_tensors_over_the_same_memory() -> None:
    array = np.ones((2, 3), "f4")
    constant = np.arange(3, dtype=">f4")
    constant.flags.writeable = False
    tensors = read_checkpoint({"fc.weight": array, "fc.bias": constant, "fc.scale": np.array(2.0)})
    array[0, 0] = 5
    assert tensors["fc"].tensors["weight"][0, 0] == 5
    assert tensors["fc"].tensors["bias"].tolist() == [0, 1, 2]
    assert tensors["fc"].shapes["scale"] == ()
