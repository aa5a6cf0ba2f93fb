"""The stream: the same patches whatever the workers, the ranks, or where it was resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import pytest
import torch
from torch.utils.data import Dataset

from transferkit.errors import StateError
from transferkit.labeling import IGNORE
from transferkit.sampler import AnnotatedImage, MultiscaleSampler, PatchBatch


class Scenes(Dataset[AnnotatedImage]):
    """Small random images with one or two objects each."""

    def __init__(self, images: int = 5) -> None:
        self.images = images

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> AnnotatedImage:
        source = torch.Generator().manual_seed(index)
        height, width = 30 + 3 * index, 40
        return AnnotatedImage(
            image=torch.randint(0, 256, (3, height, width), generator=source, dtype=torch.uint8),
            boxes=torch.tensor([[4.0, 5.0, 13.0, 15.0], [22.0, 3.0, 33.0, 12.0]], dtype=torch.float64),
            classes=torch.tensor([1, 1 + index % 3]),
            difficult=torch.tensor([False, False]),
            truncated=torch.tensor([False, True]),
            id=f"scene{index}",
        )


def sampler(**changes: object) -> MultiscaleSampler:
    settings: dict[str, object] = {"patches_per_image": 120, "batch_size": 24, "patch_size": 16, "seed": 13}
    return MultiscaleSampler(Scenes(), **{**settings, **changes})


def patches(batches: Iterable[PatchBatch]) -> list[str]:
    """One digest per patch, sorted: what an epoch holds, whatever its order."""
    found = []
    for batch in batches:
        for row in range(len(batch)):
            if batch.image_index[row] >= 0:
                parts = (batch.pixels[row], batch.labels[row], batch.boxes[row], batch.image_index[row])
                found.append(
                    hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()
                )
    return sorted(found)


def digest(batch: PatchBatch) -> str:
    return "".join(patches([batch]))


@pytest.mark.parametrize("mix_images", [1, 2, 5])
@pytest.mark.parametrize("mode", ["train", "test"])
def test_len_is_right_and_every_image_gives_its_patches(mode: str, mix_images: int) -> None:
    stream = sampler(mode=mode, mix_images=mix_images)
    batches = list(stream)
    assert len(batches) == len(stream)
    index = torch.cat([batch.image_index for batch in batches])
    assert torch.bincount(index).tolist() == [120] * 5
    assert all(len(set(batch.image_index.tolist())) <= mix_images for batch in batches)


@pytest.mark.parametrize("mix_images", [1, 2])
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_the_epoch_and_end_together(world_size: int, mix_images: int) -> None:
    whole = patches(sampler(mix_images=mix_images))
    ranks = [sampler(mix_images=mix_images, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(rank) for rank in ranks]
    assert patches(batch for one in batches for batch in one) == whole
    assert len({len(one) for one in batches}) == 1
    assert [len(rank) for rank in ranks] == [len(one) for one in batches]
    fillers = [batch for one in batches for batch in one if (batch.image_index < 0).any()]
    assert all((batch.labels == IGNORE).all() for batch in fillers)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing(num_workers: int) -> None:
    alone = [digest(batch) for batch in sampler()]
    assert [digest(batch) for batch in sampler(num_workers=num_workers)] == alone


@pytest.mark.parametrize("mix_images", [1, 2])
def test_resumed_at_any_batch(mix_images: int) -> None:
    whole = [digest(batch) for _ in range(1) for batch in sampler(mix_images=mix_images)]
    for stop in range(len(whole)):
        first, second = sampler(mix_images=mix_images), sampler(mix_images=mix_images)
        stream = iter(first)
        seen = [digest(next(stream)) for _ in range(stop)]
        second.load_state_dict(first.state_dict())
        second.set_epoch(0)
        assert seen + [digest(batch) for batch in second] == whole


def test_epochs_differ_and_follow_each_other() -> None:
    stream = sampler()
    epochs = [patches(stream) for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    stream.set_epoch(1)
    assert patches(stream) == epochs[1]
    assert stream.state_dict()["epoch"] == 2


def test_a_test_is_always_on_the_same_patches() -> None:
    stream = sampler(mode="test")
    assert patches(stream) == patches(stream)


def test_no_global_random_numbers_are_drawn() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for _ in sampler(num_workers=1):
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_of_other_settings_is_refused_by_name() -> None:
    with pytest.raises(StateError, match=r"seed: 13 when it was saved, 14 now"):
        sampler(seed=14).load_state_dict(sampler().state_dict())
