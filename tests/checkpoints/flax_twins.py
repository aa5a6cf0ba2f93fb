"""The networks of files/make_flax.py, written again in torch, with inputs as torch wants them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.max_pool2d(self.norm1(self.conv1(image)).relu(), 2)
        return self.fc(self.conv2(x).relu().mean((2, 3)))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.LayerNorm_0 = nn.LayerNorm(6, eps=1e-6)
        self.Dense_0, self.Dense_1 = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.Dense_1(self.Dense_0(self.LayerNorm_0(x)).tanh())


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.point, self.gn = nn.Conv2d(8, 6, 1), nn.GroupNorm(2, 6, eps=1e-6)

    def forward(self, image: Tensor) -> Tensor:
        return self.gn(self.point(self.depth(image)))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up1, self.slope = nn.ConvTranspose2d(3, 4, 3, stride=2), nn.PReLU()
        self.up2 = nn.ConvTranspose2d(4, 2, 2, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        return self.up2(self.slope(self.up1(image)))


class Signal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv1d(3, 5, 3, dilation=2)
        self.rms, self.fc = nn.RMSNorm(5, eps=1e-6), nn.Linear(5, 2)

    def forward(self, signal: Tensor) -> Tensor:
        return self.fc(self.rms(self.c1(signal).movedim(1, -1)))


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv3d(2, 3, 3, padding=1)

    def forward(self, volume: Tensor) -> Tensor:
        return self.c1(volume)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(11, 5), nn.LSTM(5, 4, batch_first=True)

    def forward(self, words: Tensor) -> Tensor:
        return self.lstm(self.embed(words))[0]


class Gates(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(8, eps=1e-6), nn.LayerNorm(8, eps=1e-6)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.fc2(functional.gelu(self.fc1(self.ln2(x))))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoderblock_0, self.encoderblock_1 = Block(), Block()
        self.encoder_norm = nn.LayerNorm(8, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder_norm(self.encoderblock_1(self.encoderblock_0(x)))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict(
            {name: nn.Linear(8, 6, bias=False) for name in ("query", "key", "value")}
            | {"out": nn.Linear(6, 8, bias=False)}
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.attn[name](x).unflatten(-1, (2, 3)).transpose(1, 2) for name in ("query", "key", "value")
        )
        return self.attn["out"](functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Cnn(), nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.stem(image))


TWINS: dict[str, type[nn.Module]] = {
    twin.__name__.lower(): twin
    for twin in (Cnn, Mlp, Depthwise, Decoder, Signal, Volume, Words, Gates, Block, Encoder, Heads, Nested)
}
CHANNELS_FIRST = ("cnn", "depthwise", "decoder", "signal", "volume", "nested")
MAPS = ("depthwise", "decoder", "volume")  # whose output is a map
