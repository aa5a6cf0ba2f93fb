"""Targets that PEFT, torch.compile or DistributedDataParallel wrapped: they behave as the network inside."""

from __future__ import annotations

import copy

import pytest
import torch

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

from tests.neighbours.pairs import _VITS, output, shaken  # noqa: E402
from transferkit.transfer import WeightTransfer, before  # noqa: E402

MAKE = _VITS["transformers"]
LORA = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"])
WRAPPINGS = {
    "compiled": torch.compile,
    "LoRA": lambda model: peft.get_peft_model(model, copy.deepcopy(LORA)),
    "LoRA injected": lambda model: peft.inject_adapter_in_model(copy.deepcopy(LORA), model),
    "compiled LoRA": lambda model: torch.compile(peft.get_peft_model(model, copy.deepcopy(LORA))),
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_a_wrapped_network_takes_all_of_the_one_inside(wrap):
    source = shaken(MAKE, 1)
    target = wrap(shaken(MAKE, 2)).eval()
    before_it = {name: p.clone() for name, p in target.named_parameters() if "lora_" in name}
    report = WeightTransfer(source).apply(target)
    assert set(report.moved) == set(source.state_dict())
    inner = getattr(target, "_orig_mod", target)
    images = torch.ones(1, 3, 32, 32)
    assert torch.equal(output(inner, images), output(source, images))
    assert all(torch.equal(before_it[n], p) for n, p in target.named_parameters() if n in before_it)


def test_names_of_the_network_inside_select_and_a_tuned_network_is_a_source():
    source, target = shaken(MAKE, 1), WRAPPINGS["LoRA"](shaken(MAKE, 2))
    report = WeightTransfer(source, select=before("classifier")).apply(target)
    assert report.moved
    assert not any(key.startswith("classifier") for key in report.moved)
    back = WeightTransfer(target).apply(MAKE())
    assert all("lora_" in key or "original_module" in key for key in back.unexpected)
