"""The networks of files/make_keras.py, written again in torch, with inputs as torch wants them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(6, eps=1e-3)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2)
        self.fc1, self.fc2 = nn.Linear(8, 10), nn.Linear(10, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.max_pool2d(self.norm1(self.conv1(image)).relu(), 2)
        return self.fc2(self.fc1(self.conv2(x).relu().flatten(1)).relu())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block_conv = nn.Conv2d(4, 4, 3, padding=1)
        self.block_norm = nn.BatchNorm2d(4, eps=1e-2)
        self.side = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = image + self.block_norm(self.block_conv(image)).relu()
        return self.head(torch.cat([x, self.side(x)], 1).mean((2, 3)))


class Separable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sep = nn.ModuleDict(
            {
                "depthwise": nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False),
                "pointwise": nn.Conv2d(8, 6, 1),
            }
        )
        self.depth = nn.Conv2d(6, 12, 3, groups=6)
        self.ln = nn.LayerNorm(12, eps=1e-3)
        self.out = nn.Linear(12, 5, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        x = self.depth(self.sep["pointwise"](self.sep["depthwise"](image)))
        return self.out(self.ln(x.movedim(1, -1)).amax((1, 2)))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grow, self.norm = nn.Linear(6, 24), nn.BatchNorm1d(24, eps=1e-3)
        self.up1, self.slope = nn.ConvTranspose2d(4, 5, 2, stride=2), nn.PReLU(5)
        self.up2 = nn.ConvTranspose2d(5, 2, 3)

    def forward(self, code: Tensor) -> Tensor:
        x = self.norm(self.grow(code)).unflatten(1, (4, 2, 3))
        return self.up2(functional.interpolate(self.slope(self.up1(x)), scale_factor=2))


class Signal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv1d(3, 5, 3), nn.Conv1d(5, 6, 3, dilation=2)
        self.norm, self.fc = nn.BatchNorm1d(48, eps=1e-3), nn.Linear(48, 4)

    def forward(self, signal: Tensor) -> Tensor:
        x = self.c2(self.c1(functional.pad(signal, (2, 0))))
        return self.fc(self.norm(functional.avg_pool1d(x, 2).flatten(1)))


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.gn = nn.Conv3d(2, 4, 3), nn.GroupNorm(2, 4, eps=1e-3)
        self.c2, self.fc = nn.ConvTranspose3d(4, 3, 2, stride=2), nn.Linear(576, 2)

    def forward(self, volume: Tensor) -> Tensor:
        return self.fc(self.c2(self.gn(self.c1(volume))).flatten(1))


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.bi = nn.LSTM(5, 4, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(8, 6, batch_first=True)
        self.rnn = nn.RNN(6, 5, batch_first=True)
        self.each = nn.Linear(5, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.each(self.rnn(self.gru(self.bi(self.embed(words))[0])[0])[0])


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)
        self.ln1, self.ln2 = nn.LayerNorm(8, eps=1e-6), nn.LayerNorm(8, eps=1e-6)
        self.narrow = nn.ModuleDict(
            {name: nn.Linear(8, 6) for name in ("query", "key", "value")} | {"output": nn.Linear(6, 8)}
        )
        self.mlp = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln1(x + self.mha(x, x, x, need_weights=False)[0])
        q, k, v = (
            self.narrow[name](x).unflatten(-1, (3, 2)).transpose(1, 2) for name in ("query", "key", "value")
        )
        y = self.narrow["output"](functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return functional.gelu(self.mlp(self.ln2(x + y)))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4, eps=1e-3)})
        self.middle = nn.ModuleDict({"conv": nn.Conv2d(4, 5, 3)})
        self.head = nn.Linear(20, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.middle["conv"](self.inner["norm"](self.inner["conv"](image)))
        return self.head(x.flatten(1))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower, self.head = nn.Linear(5, 4), nn.Linear(8, 2)

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        return self.head(torch.cat([self.tower(one).tanh(), self.tower(two).tanh()], 1))


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(36, 36), nn.Linear(36, 36)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.conv(image).flatten(1)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(4, 8, 3, stride=2, groups=2), nn.Linear(8, 2)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv(functional.pad(image, (1, 0, 0, 1))) * 0.5
        return self.fc(x[:, :, 1:-1, 1:-1].flatten(1))


TWINS: dict[str, type[nn.Module]] = {
    twin.__name__.lower(): twin
    for twin in (
        *(Cnn, Residual, Separable, Decoder, Signal, Volume),
        *(Text, Transformer, Nested, Shared, Square, Grouped),
    )
}
CHANNELS_FIRST = ("cnn", "residual", "separable", "signal", "volume", "nested", "square", "grouped")
MAPS = ("decoder",)  # whose output is a map
