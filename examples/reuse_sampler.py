"""The sampler alone, in a training loop of one's own, over a torchvision-style data set.

    python examples/reuse_sampler.py

Scenes with two handwritten digits each. A small network learns to tell which digit a patch shows, or that it shows
none. Measured: 26 seconds of one core, and it ends with

    epoch 4: 66% of 9600 patches right
"""

from types import SimpleNamespace

import numpy as np
import torch
from sklearn.datasets import load_digits

from transferkit.sampler import ClassBalanced, MultiscaleSampler

DIGITS = load_digits()


class Scenes:
    """What torchvision's detection data sets are: a length, and items (image in 0..1, target)."""

    def __len__(self):
        return 300

    def __getitem__(self, index):
        draw = np.random.default_rng(index)
        image, boxes, labels = 0.3 * draw.random((3, 96, 128), np.float32), [], []
        for left in (0, 64):
            digit, scale = draw.integers(len(DIGITS.target)), draw.integers(3, 9)
            side = 8 * scale
            x, y = left + draw.integers(65 - side), draw.integers(97 - side)
            image[:, y : y + side, x : x + side] += np.kron(DIGITS.images[digit] / 24, np.ones((scale, scale)))
            boxes.append([x, y, x + side, y + side])
            labels.append(DIGITS.target[digit] + 1)
        return torch.from_numpy(image), {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}


class Items(Scenes):
    """The same as the sampler wants them: anything with an image in bytes, boxes, and classes from 1."""

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return SimpleNamespace(image=(image * 255).byte(), boxes=target["boxes"], classes=target["labels"])


torch.manual_seed(0)
sampler = MultiscaleSampler(
    Items(), balance=ClassBalanced(0.3), patches_per_image=32, patch_size=32, mix_images=8
)
model = torch.nn.Sequential(
    *(torch.nn.Conv2d(3, 32, 5, 2), torch.nn.BatchNorm2d(32), torch.nn.ReLU()),
    *(torch.nn.Conv2d(32, 64, 3, 2), torch.nn.BatchNorm2d(64), torch.nn.ReLU()),
    *(torch.nn.Flatten(), torch.nn.Linear(64 * 6 * 6, 11)),
)
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for epoch in range(4):
    right = patches = 0
    for batch in sampler:
        logits = model(batch.pixels / 127.5 - 1)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, batch.labels).backward()
        optimizer.step()
        right, patches = right + int((logits.argmax(1) == batch.labels).sum()), patches + len(batch)
    print(f"epoch {epoch + 1}: {right / patches:.0%} of {patches} patches right")
