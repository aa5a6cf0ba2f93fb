"""Well-known architectures, small, each spelled as different authors spell it.

A network is written once, in terms of roles; a spelling says under which dotted name, and in which order, an author
defines what plays each role. Two spellings of one network compute the same function only if every role's weights
are where they belong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

Spelling = Mapping[str, str]


class Spelled(nn.Module):
    """A module whose parts are found by role and registered by an author's names, in the author's order."""

    def __init__(self, spelling: Spelling, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = {role: name for role, name in spelling.items() if role in parts}
        assert set(self.names) == set(parts), f"no name for {set(parts) - set(self.names)}"
        for role, name in self.names.items():
            self._register(name, parts[role])

    def _register(self, name: str, part: nn.Module) -> None:
        owner: nn.Module = self
        *containers, leaf = name.split(".")
        for container in containers:
            if container not in owner._modules:
                owner.add_module(container, nn.Module())
            owner = owner.get_submodule(container)
        owner.add_module(leaf, part)

    def run(self, data: Tensor, *roles: str) -> Tensor:
        for role in roles:
            data = self.get_submodule(self.names[role])(data)
        return data


def per_block(blocks: Sequence[Mapping[str, object]], names: Spelling) -> Spelling:
    """Write out the names of every block: ``{"conv": "layer{stage}.{unit}.conv"}`` for each in ``blocks``."""
    return {
        f"{number}.{role}": name.format(n=number, **block)
        for number, block in enumerate(blocks)
        for role, name in names.items()
    }


def conv(a: int, b: int, kernel: int = 3, stride: int = 1, *, bias: bool = False, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, kernel, stride, kernel // 2, bias=bias, groups=groups)


class Chain(Spelled):
    """AlexNet and VGG: convolutions (with norms, if spelled), then three linear layers."""

    def __init__(
        self, spelling: Spelling, widths: Sequence[int], pools: Sequence[int], hidden: int = 40
    ) -> None:
        parts: dict[str, nn.Module] = {}
        self_norms = "bn0" in spelling
        for place, (a, b) in enumerate(pairwise((3, *widths))):
            parts[f"conv{place}"] = conv(a, b, bias=not self_norms)
            if self_norms:
                parts[f"bn{place}"] = nn.BatchNorm2d(b)
        parts |= {
            f"fc{place}": nn.Linear(a, b)
            for place, (a, b) in enumerate(pairwise((widths[-1] * 4, hidden, hidden, 7)))
        }
        super().__init__(spelling, parts)
        self.depth, self.pools, self.norms = len(widths), pools, self_norms

    def forward(self, x: Tensor) -> Tensor:
        for place in range(self.depth):
            x = F.relu(self.run(x, f"conv{place}", *([f"bn{place}"] if self.norms else [])))
            x = F.max_pool2d(x, 2) if place in self.pools else x
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.run(F.relu(self.run(F.relu(self.run(x, "fc0")), "fc1")), "fc2")


class ResNet(Spelled):
    """A stem and four residual blocks of basic or bottleneck kind; where the shape changes, a projection."""

    BLOCKS = (
        {"stage": 1, "unit": 0},
        {"stage": 1, "unit": 1},
        {"stage": 2, "unit": 0},
        {"stage": 2, "unit": 1},
    )

    def __init__(self, spelling: Spelling, bottleneck: bool) -> None:
        parts: dict[str, nn.Module] = {"stem": conv(3, 16, 7, 2), "stem_bn": nn.BatchNorm2d(16)}
        width = 16
        for block, (inner, stride) in enumerate([(16, 1), (16, 1), (32, 2), (32, 1)]):
            out = inner * 4 if bottleneck else inner
            widths = (width, inner, inner, out) if bottleneck else (width, inner, out)
            for place, (a, b) in enumerate(pairwise(widths)):
                kernel = 1 if bottleneck and place != 1 else 3
                parts[f"{block}.conv{place}"] = conv(a, b, kernel, stride if place == int(bottleneck) else 1)
                parts[f"{block}.bn{place}"] = nn.BatchNorm2d(b)
            if width != out:
                parts |= {f"{block}.skip": conv(width, out, 1, stride), f"{block}.skip_bn": nn.BatchNorm2d(out)}
            width = out
        super().__init__(spelling, parts | {"fc": nn.Linear(width, 5)})
        self.depth = 3 if bottleneck else 2

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.run(x, "stem", "stem_bn"))
        for block in range(4):
            y = x
            for place in range(self.depth):
                y = self.run(F.relu(y) if place else y, f"{block}.conv{place}", f"{block}.bn{place}")
            x = self.run(x, f"{block}.skip", f"{block}.skip_bn") if f"{block}.skip" in self.names else x
            x = F.relu(x + y)
        return self.run(x.mean(dim=(2, 3)), "fc")


class MobileNet(Spelled):
    """MobileNetV2, and with ``se`` EfficientNet: expand, depthwise, squeeze, project, each with its norm."""

    SHAPES = ((8, 1, 1), (12, 4, 2), (12, 4, 1), (12, 4, 1), (16, 4, 2), (16, 4, 1))  # out, expansion, stride

    def __init__(self, spelling: Spelling, se: bool = False) -> None:
        parts: dict[str, nn.Module] = {"stem": conv(3, 8, 3, 2), "stem_bn": nn.BatchNorm2d(8)}
        width = 8
        for block, (out, expansion, stride) in enumerate(self.SHAPES):
            wide = width * expansion
            if expansion > 1:
                parts |= {f"{block}.expand": conv(width, wide, 1), f"{block}.expand_bn": nn.BatchNorm2d(wide)}
            parts |= {
                f"{block}.depthwise": conv(wide, wide, 3, stride, groups=wide),
                f"{block}.depthwise_bn": nn.BatchNorm2d(wide),
            }
            if se:
                parts |= {
                    f"{block}.reduce": conv(wide, 4, 1, bias=True),
                    f"{block}.restore": conv(4, wide, 1, bias=True),
                }
            parts |= {f"{block}.project": conv(wide, out, 1), f"{block}.project_bn": nn.BatchNorm2d(out)}
            width = out
        parts |= {"top": conv(width, 32, 1), "top_bn": nn.BatchNorm2d(32), "fc": nn.Linear(32, 5)}
        super().__init__(spelling, parts)
        self.se = se

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.run(x, "stem", "stem_bn"))
        for block, (_, expansion, _) in enumerate(self.SHAPES):
            y = F.relu6(self.run(x, f"{block}.expand", f"{block}.expand_bn")) if expansion > 1 else x
            y = F.relu6(self.run(y, f"{block}.depthwise", f"{block}.depthwise_bn"))
            if self.se:
                squeezed = F.relu(self.run(y.mean(dim=(2, 3), keepdim=True), f"{block}.reduce"))
                y = y * self.run(squeezed, f"{block}.restore").sigmoid()
            y = self.run(y, f"{block}.project", f"{block}.project_bn")
            x = x + y if x.shape == y.shape else y
        return self.run(F.relu6(self.run(x, "top", "top_bn")).mean(dim=(2, 3)), "fc")


class Transformer(Spelled):
    """ViT or BERT: an embedding, three blocks of attention and a feed-forward part, a head.

    Attention is one fused matrix where ``qkv`` is spelled; the feed-forward part is gated where ``gate`` is.
    """

    WIDTH, WIDE, DEPTH = 16, 40, 3

    def __init__(self, spelling: Spelling, image: bool) -> None:
        width, wide = self.WIDTH, self.WIDE
        parts: dict[str, nn.Module] = {"embed": nn.Conv2d(3, width, 4, 4) if image else nn.Embedding(30, width)}
        if not image:
            parts |= {"positions": nn.Embedding(12, width), "embed_norm": nn.LayerNorm(width)}
        for block in range(self.DEPTH):
            attention = {"qkv": 3 * width} if "0.qkv" in spelling else {"q": width, "k": width, "v": width}
            parts |= {f"{block}.{role}": nn.Linear(width, out) for role, out in attention.items()}
            parts |= {f"{block}.out": nn.Linear(width, width), f"{block}.up": nn.Linear(width, wide)}
            parts |= {f"{block}.gate": nn.Linear(width, wide)} if "0.gate" in spelling else {}
            parts |= {f"{block}.down": nn.Linear(wide, width)}
            parts |= {f"{block}.norm1": nn.LayerNorm(width), f"{block}.norm2": nn.LayerNorm(width)}
        super().__init__(spelling, parts | {"norm": nn.LayerNorm(width), "fc": nn.Linear(width, 5)})
        self.image = image

    def forward(self, x: Tensor) -> Tensor:
        x = self.run(x, "embed")
        if self.image:
            x = x.flatten(2).mT
        else:
            x = self.run(x + self.run(x.new_zeros(1, x.shape[1]).cumsum(1).long(), "positions"), "embed_norm")
        for block in range(self.DEPTH):
            y = self.run(x, f"{block}.norm1")
            x = x + self.run(self.attention(y, block), f"{block}.out")
            y = self.run(x, f"{block}.norm2")
            up = self.run(y, f"{block}.up")
            up = F.silu(self.run(y, f"{block}.gate")) * up if f"{block}.gate" in self.names else F.gelu(up)
            x = x + self.run(up, f"{block}.down")
        return self.run(self.run(x, "norm").mean(dim=1), "fc")

    def attention(self, x: Tensor, block: int) -> Tensor:
        if f"{block}.qkv" in self.names:
            q, k, v = self.run(x, f"{block}.qkv").chunk(3, dim=-1)
        else:
            q, k, v = (self.run(x, f"{block}.{role}") for role in "qkv")
        weights = (q @ k.mT / 4).softmax(dim=-1)
        return weights @ v
