"""Folders as Hugging Face's Trainer, accelerate, PEFT and DeepSpeed leave them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import transferkit as tk
from transferkit.errors import CheckpointError

BESIDE = {
    "trainer": (
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "rng_state_1.pth",
        "scaler.pt",
        "training_args.bin",
    ),
    "accelerate": ("optimizer.bin", "optimizer_1.bin", "scheduler.bin", "sampler.bin", "random_states_0.pkl"),
}


@pytest.mark.parametrize("library", BESIDE)
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_weights_are_told_from_what_lies_beside_them(library: str, weights: str, tmp_path: Path) -> None:
    tensors = {"fc.weight": torch.ones(2, 3)}
    save_file(tensors, tmp_path / weights) if weights.endswith("s") else torch.save(tensors, tmp_path / weights)
    for name in BESIDE[library]:
        (tmp_path / name).write_bytes(b"anything")
    checkpoint = tk.read_checkpoint(tmp_path)
    assert checkpoint.names == ("fc",)
    assert all(name in " ".join(checkpoint.notes) for name in BESIDE[library])  # nothing is left out silently


def test_checkpoints_in_a_folder_are_named_in_their_order(tmp_path: Path) -> None:
    for step in (500, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
        torch.save(
            {"fc.weight": torch.full((2, 3), step)}, tmp_path / f"checkpoint-{step}" / "pytorch_model.bin"
        )
    (tmp_path / "runs").mkdir()
    with pytest.raises(CheckpointError, match=r"checkpoint-500, .*checkpoint-1000$") as refused:
        tk.read_checkpoint(tmp_path)
    last = str(refused.value).rpartition(" ")[2]  # what the advice says, to the letter
    assert float(tk.read_checkpoint(last)["fc"].tensors["weight"][0, 0]) == 1000
    torch.save({"fc.weight": torch.ones(2, 3)}, tmp_path / "pytorch_model.bin")
    assert any("checkpoint-500" in note for note in tk.read_checkpoint(tmp_path).notes)


def test_an_adapter_is_called_one(tmp_path: Path) -> None:
    name = "base_model.model.fc.lora_A.weight"
    save_file({name: torch.ones(2, 3)}, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": "bert-base", "r": 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    checkpoint = tk.read_checkpoint(tmp_path)
    assert list(checkpoint.state_dict()) == [name]
    assert checkpoint.metadata["base_model_name_or_path"] == "bert-base"
    assert any("a PEFT adapter (LORA) of bert-base" in note for note in checkpoint.notes)


def test_deepspeeds_parts_lead_to_their_script(tmp_path: Path) -> None:
    (tmp_path / "zero_to_fp32.py").touch()
    with pytest.raises(CheckpointError, match="python .*zero_to_fp32.py"):
        tk.read_checkpoint(tmp_path)
