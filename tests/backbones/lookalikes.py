"""Small networks by the public conventions of the packages whose models people bring: names, structure, attributes.

They hold none of these packages' code. What is alike is what a library can see from outside: where the head is and
what it is called, what ``forward`` returns, and where mean and standard deviation are kept.
"""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import torch
from torch import Tensor, nn


def conv_bn(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6()
    )


class BasicBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    """torchvision's: conv1 bn1 relu maxpool layer1..4 avgpool fc."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(BasicBlock(8), BasicBlock(8))
        self.layer2 = nn.Sequential(BasicBlock(8))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class VGG(nn.Module):
    """torchvision's: features, avgpool, classifier of three linear layers."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(True),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(8 * 49, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(True), nn.Dropout(),
            nn.Linear(16, num_classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class MobileNetV2(nn.Module):
    """torchvision's: features, a functional pooling, classifier of dropout and linear."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(3, 8, 2), conv_bn(8, 8, groups=8), conv_bn(8, 16))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))


class SqueezeExcitation(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(width, 4, 1)
        self.fc2 = nn.Conv2d(4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(self.avgpool(x)).relu()).sigmoid()


class EfficientNet(nn.Module):
    """torchvision's: features with squeeze and excitation, avgpool, classifier."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_bn(3, 8, 2), nn.Sequential(conv_bn(8, 8), SqueezeExcitation(8)), conv_bn(8, 16)
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(16, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class SqueezeNet(nn.Module):
    """torchvision's: the head is a convolution."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2))
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(8, num_classes, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class VisionTransformer(nn.Module):
    """torchvision's: conv_proj, class_token, encoder, heads.head."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(3, 16, 16, 16)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.encoder = nn.Module()
        self.encoder.layers = nn.Sequential(
            OrderedDict(
                (f"encoder_layer_{i}", nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True))
                for i in range(2)
            )
        )
        self.encoder.ln = nn.LayerNorm(16)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(16, num_classes)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        return self.heads(self.encoder.ln(self.encoder.layers(x))[:, 0])


class ConvNeXt(nn.Module):
    """torchvision's: features, avgpool, classifier of norm, flatten and linear."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.GroupNorm(1, 8), nn.GELU())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.GroupNorm(1, 8), nn.Flatten(1), nn.Linear(8, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)))


class Swin(nn.Module):
    """torchvision's: channels last inside, norm, permute, avgpool, flatten, head."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 4, 4))
        self.norm = nn.LayerNorm(8)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.features(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.flatten(self.avgpool(x)))


InceptionOutputs = namedtuple("InceptionOutputs", ["logits", "aux_logits"])


class Inception(nn.Module):
    """torchvision's: an auxiliary head in training."""

    def __init__(self, num_classes: int = 10, aux_logits: bool = True) -> None:
        super().__init__()
        self.body = conv_bn(3, 8, 2)
        self.AuxLogits = nn.Sequential(OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))
        if aux_logits:
            self.AuxLogits.add_module("fc", nn.Linear(8, num_classes))
        self.aux_logits = aux_logits
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor | InceptionOutputs:
        x = self.body(x)
        logits = self.fc(torch.flatten(self.avgpool(x), 1))
        return InceptionOutputs(logits, self.AuxLogits(x)) if self.training and self.aux_logits else logits


class TimmResNet(nn.Module):
    """timm's: forward is forward_features and forward_head; the model says what it wants and where its head is."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 8
        self.pretrained_cfg = self.default_cfg = {
            "mean": (0.5, 0.5, 0.5), "std": (0.4, 0.4, 0.4), "input_size": (3, 64, 96), "classifier": "fc",
        }  # fmt: skip
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3)
        self.layer1 = nn.Sequential(BasicBlock(8))
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.fc = nn.Linear(8, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(8, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        return self.layer1(self.conv1(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        return x if pre_logits or not self.num_classes else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class TimmConvNeXt(TimmResNet):
    """timm's nested head: head.global_pool, head.norm, head.fc; other layers are defined after it."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(num_classes)
        del self.fc, self.global_pool
        self.head = nn.Sequential(
            OrderedDict(
                global_pool=nn.AdaptiveAvgPool2d(1), norm=nn.GroupNorm(1, 8), flatten=nn.Flatten(1),
                fc=nn.Linear(8, num_classes),
            )
        )  # fmt: skip
        self.late = nn.Conv2d(8, 8, 1)

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.late(self.forward_features(x)))


class DistilledDeiT(nn.Module):
    """timm's: head and head_dist, averaged in evaluation, both returned in training."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 16, 16)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, num_classes)
        self.head_dist = nn.Linear(8, num_classes)

    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        return self.head, self.head_dist

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.norm(self.embed(x).flatten(2).mean(dim=2))
        heads = self.head(x), self.head_dist(x)
        return heads if self.training else (heads[0] + heads[1]) / 2


class ModelOutput(OrderedDict):
    """Hugging Face's: a dict whose values are attributes too, without those that are None."""

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class HuggingFaceEncoder(nn.Module):
    """Hugging Face's ``...Model``: no head, perhaps a pooler."""

    def __init__(self, pooler: bool = True) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_size=32, num_channels=3)
        self.embeddings = nn.Conv2d(3, 8, 16, 16)
        self.layer = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.layernorm = nn.LayerNorm(8)
        self.pooler = nn.ModuleDict({"dense": nn.Linear(8, 8)}) if pooler else None

    def forward(self, pixel_values: Tensor) -> ModelOutput:
        x = self.embeddings(pixel_values).flatten(2).transpose(1, 2)
        for layer in self.layer:
            x = x + layer(x)
        output = ModelOutput(last_hidden_state=self.layernorm(x))
        if self.pooler is not None:
            output["pooler_output"] = self.pooler["dense"](output["last_hidden_state"][:, 0]).tanh()
        return output


class HuggingFaceClassifier(nn.Module):
    """Hugging Face's ``...ForImageClassification``: the encoder under its kind's name, and a classifier."""

    def __init__(self, num_labels: int = 10) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.config = SimpleNamespace(image_size=32, num_channels=3)
        self.vit = HuggingFaceEncoder(pooler=False)
        self.classifier = nn.Linear(8, num_labels)

    def forward(self, pixel_values: Tensor) -> ModelOutput:
        return ModelOutput(
            logits=self.classifier(self.vit(pixel_values=pixel_values)["last_hidden_state"][:, 0])
        )


HEADS: dict[type[nn.Module], tuple[str, int]] = {
    ResNet: ("fc", 8),
    VGG: ("classifier.6", 16),
    MobileNetV2: ("classifier.1", 16),
    EfficientNet: ("classifier.1", 16),
    SqueezeNet: ("classifier.1", 8),
    VisionTransformer: ("heads.head", 16),
    ConvNeXt: ("classifier.2", 8),
    Swin: ("head", 8),
    TimmResNet: ("fc", 8),
    TimmConvNeXt: ("head.fc", 8),
    HuggingFaceClassifier: ("classifier", 8),
}
"""Where the head of each is, and the width of what it is given."""
