"""The small networks whose ONNX files lie here, and how they were written: python -m tests.checkpoints.files.make_onnx.

torch 2.13, both of its exporters; the newer one's traces of Python code were taken out, which are most of such a file.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Sight(nn.Module):
    """Convolutions with batch norms that are folded in and one that cannot be, other norms, a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6, eps=1e-3)
        self.layers = nn.Sequential(nn.Sequential(nn.Conv2d(6, 6, 3, padding=(1, 0), groups=2), nn.ReLU6()))
        self.after = nn.BatchNorm2d(6, momentum=0.2)
        self.group = nn.GroupNorm(2, 6, eps=1e-4)
        self.slope = nn.PReLU(6)
        self.up = nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1, dilation=1)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.layers(torch.relu(self.bn(self.conv(x)))))
        x = self.up(self.slope(self.group(x))) * self.scale
        return self.head(x.mean((2, 3)))


class Words(nn.Module):
    """Embeddings, positions, attention, a tied output and recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.position = nn.Parameter(torch.ones(1, 5, 4))
        self.norm = nn.LayerNorm(4, eps=1e-6)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4, bias=False))
        self.lstm = nn.LSTM(4, 3, 2, bidirectional=True)
        self.gru = nn.GRU(6, 4)
        self.output = nn.Linear(4, 7, bias=False)
        self.output.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x) + self.position
        h = h + self.attention(*[self.norm(h)] * 3, need_weights=False)[0]
        return self.output(self.gru(self.lstm(self.mlp(h))[0])[0])


NETWORKS = {"sight": (Sight, torch.zeros(2, 3, 8, 8)), "words": (Words, torch.zeros(2, 5, dtype=torch.int64))}


def filled(name: str) -> nn.Module:
    """Return a network whose tensors are told by their names."""
    network: nn.Module = NETWORKS[name][0]()
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            values = (torch.arange(tensor.numel()) % 97 + zlib.crc32(key.encode()) % 89 + 1) / 128
            tensor.copy_(values.reshape(tensor.shape))
    return network.eval()


def _without_traces(content: bytes) -> bytes:
    import onnx

    model = onnx.load_from_string(content)
    nodes: list[Any] = list(model.graph.node)
    for each in [*nodes, *model.graph.input, *model.graph.output, *model.graph.value_info]:
        each.ClearField("doc_string")
        kept = [entry for entry in each.metadata_props if entry.key.endswith("name_scopes")]
        del each.metadata_props[:]
        each.metadata_props.extend(kept)
    del model.graph.value_info[:]
    return bytes(model.SerializeToString())


def main() -> None:
    """Write the files."""
    for name, (_, example) in NETWORKS.items():
        for exporter, dynamo, opset in (("script", False, 17), ("dynamo", True, 18)):
            buffer = io.BytesIO()
            torch.onnx.export(filled(name), (example,), buffer, dynamo=dynamo, opset_version=opset)
            Path(__file__).with_name(f"{name}_{exporter}.onnx").write_bytes(_without_traces(buffer.getvalue()))


if __name__ == "__main__":
    main()
