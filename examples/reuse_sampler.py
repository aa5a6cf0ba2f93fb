"""The sampler alone, in a training loop of one's own, over a torchvision-style data set.

    python examples/reuse_sampler.py

Scenes with two handwritten digits each. A small network learns to tell which digit a patch shows, or that it shows
none. Measured: 20 seconds of one core, and it ends with

    epoch 4: 65% of 9600 patches right
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from transferkit.sampler import AnnotatedImage, ClassBalanced, MultiscaleSampler


def detection_item(index):
    """What torchvision's detection data sets give: an image in 0..1, and its target."""
    draw = torch.Generator().manual_seed(index)
    image, boxes, labels = torch.rand(3, 96, 128, generator=draw) * 0.3, [], []
    for left in (0, 64):
        side, digit = (
            int(torch.randint(*limits, (), generator=draw)) for limits in ((24, 64), (0, len(DIGITS)))
        )
        x, y = left + (64 - side) // 2, int(torch.randint(0, 96 - side, (), generator=draw))
        image[:, y : y + side, x : x + side] += interpolate(DIGITS[digit, None], size=side)[0] * 0.7
        boxes.append([x, y, x + side, y + side])
        labels.append(NUMBERS[digit] + 1)
    return image, {"boxes": torch.tensor(boxes), "labels": torch.stack(labels)}


class Scenes(torch.utils.data.Dataset):
    """The same items, as the sampler wants them."""

    def __len__(self):
        return 300

    def __getitem__(self, index):
        image, target = detection_item(index)
        no = torch.zeros(len(target["labels"]), dtype=torch.bool)
        return AnnotatedImage((image * 255).byte(), target["boxes"], target["labels"], no, no, id=str(index))


DIGITS = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
NUMBERS = torch.tensor(load_digits().target)

torch.manual_seed(0)
balance = ClassBalanced(background=0.3)
sampler = MultiscaleSampler(
    Scenes(), balance=balance, patches_per_image=32, batch_size=64, patch_size=32, mix_images=8
)
model = nn.Sequential(
    *(nn.Conv2d(3, 32, 5, 2), nn.BatchNorm2d(32), nn.ReLU()),
    *(nn.Conv2d(32, 64, 3, 2), nn.BatchNorm2d(64), nn.ReLU()),
    *(nn.Flatten(), nn.Linear(64 * 6 * 6, 11)),
)
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for epoch in range(4):
    right = patches = 0
    for batch in sampler:
        logits = model(batch.pixels / 127.5 - 1)
        optimizer.zero_grad()
        cross_entropy(logits, batch.labels).backward()
        optimizer.step()
        right, patches = right + int((logits.argmax(1) == batch.labels).sum()), patches + len(batch)
    print(f"epoch {epoch + 1}: {right / patches:.0%} of {patches} patches right")
