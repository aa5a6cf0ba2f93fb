"""The stream: the same patches whatever the workers, the ranks, or where it was resumed."""

from __future__ import annotations

import hashlib
import struct
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL.Image import DecompressionBombError
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from transferkit.errors import ArgumentError, DataError, StateError
from transferkit.labeling import IGNORE, IoURule, Objects, PatchLabels
from transferkit.sampler import (
    AllPatches,
    AnnotatedImage,
    BackgroundFraction,
    ClassBalanced,
    ColorJitter,
    MultiscaleSampler,
    PatchBatch,
    PatchGrid,
    RandomFlip,
    crop_and_resize,
)
from transferkit.sampler._source import PixelSource, tellers_of


class Scenes(Dataset[AnnotatedImage]):
    """Small random images with one or two objects each; those in ``bad`` cannot be read."""

    def __init__(self, images: int = 5, bad: tuple[int, ...] = ()) -> None:
        self.images = images
        self.bad = bad
        self.decoded: list[int] = []

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> AnnotatedImage:
        self.decoded.append(index)
        if index in self.bad:
            raise OSError(f"scene{index}.jpg is truncated")
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


def sampler(dataset: Any = None, **changes: Any) -> MultiscaleSampler:
    settings: dict[str, Any] = {"patches_per_image": 120, "batch_size": 24, "patch_size": 16, "seed": 13}
    return MultiscaleSampler(dataset or Scenes(), **{**settings, **changes})


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


@pytest.mark.parametrize("mix_images", [1, 2, 4])
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_divide_every_minibatch_of_one_process(world_size: int, mix_images: int) -> None:
    """Also the last ones, of fewer images than ranks; an image is whole on one rank where there are enough of them."""
    how: dict[str, Any] = {"mix_images": mix_images, "patches_per_image": 50}
    ranks = [sampler(**how, rank=rank, world_size=world_size) for rank in range(world_size)]
    steps = list(zip(*ranks, strict=True))
    whole = list(sampler(**how))
    assert [patches(step) for step in steps] == [patches([batch]) for batch in whole]
    assert {len(rank) for rank in ranks} == {len(steps)}
    for step, one in zip(steps, whole, strict=True):
        sizes = [0 if batch.is_filler else len(batch) for batch in step]
        owners = [set(batch.image_index.tolist()) for batch in step if not batch.is_filler]
        if mix_images >= world_size:
            assert sum(map(len, owners)) == len(set.union(*owners))
        else:
            assert max(sizes) - min(sizes) <= 1
        assert not one.is_filler
    fillers = [batch for step in steps for batch in step if batch.is_filler]
    assert fillers or world_size == 2
    for batch in fillers:  # of real patches, which norm layers may see, and which train nothing
        assert (batch.labels == IGNORE).all() and batch.pixels.float().std() > 1 and len(batch) > 1


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing(num_workers: int) -> None:
    alone = [digest(batch) for batch in sampler()]
    assert [digest(batch) for batch in sampler(num_workers=num_workers)] == alone


@pytest.mark.parametrize("mix_images", [1, 2])
def test_resumed_at_any_batch(mix_images: int) -> None:
    whole = [digest(batch) for _ in range(1) for batch in sampler(mix_images=mix_images)]
    for stop in (0, 1, 4, 5, 13, 24):
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


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # two iterations have two sets of workers
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("mode", ["train", "test"])
def test_iterations_that_overlap_do_not_touch_each_other(mode: str, num_workers: int) -> None:
    """In any interleaving, each holds its own epoch whole, and the state is that of the last one used."""
    order = sampler(mode=mode)
    epochs = [[digest(batch) for batch in order] for _ in range(3)]
    stream = sampler(mode=mode, num_workers=num_workers)
    running, found = [iter(stream) for _ in epochs], [list[str]() for _ in epochs]
    turns = torch.randint(3, (20,), generator=torch.Generator().manual_seed(5)).tolist()
    for turn in [0, 1, 2, *turns]:  # an epoch begins where its first minibatch is asked for
        found[turn].append(digest(next(running[turn])))
        rest = sampler(mode=mode)
        rest.load_state_dict(stream.state_dict())
        assert digest(next(iter(rest))) == epochs[turn][len(found[turn])]
    for batches, iteration in zip(found, running, strict=True):
        batches += [digest(batch) for batch in iteration]
    assert found == epochs


def test_a_look_ahead_leaves_an_epoch_and_a_loaded_place_alone() -> None:
    epochs = sampler()
    first, second = ([digest(batch) for batch in epochs] for _ in range(2))
    stream = sampler()
    seen = []
    for batch in stream:
        seen.append(digest(batch))
        if len(seen) == 7:
            next(iter(stream))
    assert seen == first and [digest(batch) for batch in stream] == second
    old = iter(stream)
    next(old)
    stream.load_state_dict({**stream.state_dict(), "epoch": 1, "batch": 3})
    next(old)  # goes on, and does not move the place where the next is to begin
    assert [digest(batch) for batch in stream] == second[3:]


def test_no_global_random_numbers_are_drawn() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for _ in sampler(num_workers=1):
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_the_pixels_are_those_of_the_boxes() -> None:
    for batch in sampler(mix_images=2):
        for row in range(0, len(batch), 7):
            image = Scenes()[int(batch.image_index[row])].image
            assert torch.equal(batch.pixels[row], crop_and_resize(image, batch.boxes[row : row + 1], 16)[0])


@pytest.mark.parametrize(
    "changes", [{"mix_images": 2}, {"batch_size": 7}, {"num_workers": 1}, {"dtype": torch.float32}]
)
def test_transforms_are_seeded_like_the_rest(changes: dict[str, Any]) -> None:
    transforms = (RandomFlip(), ColorJitter())
    changes = {"transforms": transforms, **changes}
    plain = {**changes, "transforms": ()}
    whole = patches(sampler(**changes))
    assert whole != patches(sampler(**plain))
    assert patches(sampler(**changes)) == whole
    assert patches(b for rank in range(2) for b in sampler(**changes, rank=rank, world_size=2)) == whole


def test_a_data_loader_around_it_is_told_that_none_is_needed() -> None:
    with pytest.raises(TypeError, match="needs no DataLoader around it"):
        next(iter(DataLoader(sampler(), batch_size=None)))  # type: ignore[arg-type]


def test_the_last_minibatch_is_kept_or_left_out() -> None:
    assert [len(batch) for batch in sampler(batch_size=50)] == [50, 50, 20] * 5
    assert [len(batch) for batch in sampler(batch_size=50, drop_last=True)] == [50, 50] * 5
    assert [len(batch) for batch in sampler(batch_size=50, mix_images=5, mode="test")] == [50] * 12
    assert len(sampler(batch_size=50, drop_last=True)) == 10


@pytest.mark.parametrize("mix_images", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_an_epoch_of_which_nothing_is_left_is_refused(mix_images: int, world_size: int) -> None:
    settings: dict[str, Any] = {
        "drop_last": True,
        "mix_images": mix_images,
        "world_size": world_size,
        "rank": 0,
    }
    with pytest.raises(ArgumentError, match=f"have {mix_images * 120} patches at most, and batch_size is 241"):
        len(sampler(batch_size=241, **settings))
    assert len(sampler(batch_size=mix_images * 120, **settings))


def test_without_a_number_all_patches_are_tested() -> None:
    stream = sampler(patches_per_image=None, mode="test")
    expected = [PatchGrid().count((30 + 3 * index, 40)) for index in range(5)]
    found = torch.bincount(torch.cat([batch.image_index for batch in stream]))
    assert found.tolist() == expected
    assert len(stream) == sum(-(-count // 24) for count in expected)


@pytest.mark.parametrize("balance", [BackgroundFraction(0.1), AllPatches(), ClassBalanced(0.25)])
@pytest.mark.parametrize("world_size", [1, 2])
def test_len_is_right_for_any_balance(balance: Any, world_size: int) -> None:
    for rank in range(world_size):
        stream = sampler(balance=balance, rank=rank, world_size=world_size)
        assert len(stream) == len(list(stream))


def test_a_balance_may_be_a_function() -> None:
    def positives(labels: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
        return (labels > 0).nonzero()[:, 0]

    stream = sampler(balance=positives)
    batches = list(stream)
    assert len(batches) == len(stream)
    assert all((batch.labels > 0).all() for batch in batches)
    assert "positives" in stream.state_dict()["balance"]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (lambda labels: torch.tensor([0, len(labels)]), r"whole numbers from 0 to \d+, got from 0 to \d+ from"),
        (lambda labels: torch.tensor([-1]), "got from -1 to -1"),
        (lambda labels: labels == 0, r"got \(\d+,\) torch.bool"),
        (lambda labels: torch.tensor([[1]]), r"got \(1, 1\) torch.int64"),
    ],
)
def test_what_a_balance_chooses_is_checked(chosen: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        list(sampler(balance=lambda labels, count, generator: chosen(labels)))


def test_a_balance_may_choose_nothing_or_give_a_list() -> None:
    assert list(sampler(balance=lambda labels, count, generator: [])) == []
    batches = list(sampler(balance=lambda labels, count, generator: [3, 1], mode="test"))
    assert [len(batch) for batch in batches] == [2] * 5


def test_a_balance_that_changes_its_mind_is_named() -> None:
    def fickle(labels: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
        return torch.arange(int(torch.randint(1, 50, (), generator=generator)))

    stream = sampler(balance=fickle)
    stream.set_epoch(1)
    with pytest.raises(DataError, match="patches where .* were expected"):
        list(stream)


def test_nothing_is_decoded_to_know_the_length() -> None:
    class Sized(Scenes):
        def image_size(self, index: int) -> tuple[int, int]:
            return 30 + 3 * index, 40

    for mode, data in (("train", Scenes()), ("test", Sized())):
        assert len(sampler(data, mode=mode)) == 25
        assert not data.decoded


def test_nor_through_views_of_the_data() -> None:
    class Sized(Scenes):
        def image_size(self, index: int) -> tuple[int, int]:
            return 30 + 3 * index, 40

    first, second = Sized(), Sized()
    views = Subset(ConcatDataset([first, Subset(second, [4, 2])]), [6, 0, 5])
    stream = sampler(views, mode="test", patches_per_image=None)
    expected = [PatchGrid().count((30 + 3 * index, 40)) for index in (2, 0, 4)]
    assert len(stream) == sum(-(-count // 24) for count in expected)
    assert not first.decoded + second.decoded
    found = torch.bincount(torch.cat([batch.image_index for batch in stream]))
    assert found.tolist() == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
def test_workers_count_where_labels_decide_the_length() -> None:
    assert len(sampler(balance=BackgroundFraction(0.1), num_workers=2)) == len(
        sampler(balance=BackgroundFraction(0.1))
    )


def test_resuming_decodes_only_what_is_left() -> None:
    whole, data = sampler(), Scenes()
    stream = iter(whole)
    for _ in range(17):
        next(stream)
    resumed = sampler(data)
    resumed.load_state_dict(whole.state_dict())
    next(iter(resumed))
    assert len(data.decoded) == 1


def test_proposals_add_to_the_grid_or_stand_in_for_it() -> None:
    def own(item: AnnotatedImage) -> Tensor:
        return item.boxes.repeat(2, 1)

    alone = sampler(grid=None, proposals=own, patches_per_image=None, mode="test")
    assert len(alone) == 5
    for batch in alone:
        assert len(batch) == 4
        assert (batch.labels > 0).all()
    both = torch.cat(
        [b.boxes for b in sampler(proposals=own, patches_per_image=None, mode="test", mix_images=5)]
    )
    assert len(both) == sum(PatchGrid().count((30 + 3 * index, 40)) + 4 for index in range(5))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(num_workers: int) -> None:
    with pytest.raises(
        DataError, match=r"image 2 of the data set cannot be used: OSError: scene2.jpg is truncated"
    ):
        list(sampler(Scenes(bad=(2,)), num_workers=num_workers))


@pytest.mark.parametrize(
    "error",
    [
        OSError("no file"),
        ValueError("odd"),
        SyntaxError("not a PNG"),
        EOFError("no more"),
        struct.error("short"),
        DecompressionBombError("huge"),
    ],
)
def test_whatever_decoders_raise_is_a_bad_image(error: Exception) -> None:
    class Broken(Scenes):
        def __getitem__(self, index: int) -> AnnotatedImage:
            raise error

    with pytest.raises(DataError, match=f"image [0-4] of the data set cannot be used: {type(error).__name__}"):
        list(sampler(Broken()))


@pytest.mark.parametrize("mix_images", [1, 2])
def test_or_skipped_counted_and_reported(mix_images: int) -> None:
    stream = sampler(Scenes(bad=(1, 3)), on_bad_image="skip", mix_images=mix_images)
    with pytest.warns(UserWarning, match="skipped 2 images that cannot be used, the last is image"):
        found = torch.cat([batch.image_index for batch in stream])
    assert set(found.tolist()) == {0, 2, 4}
    assert dict(stream.bad_images) == {index: f"OSError: scene{index}.jpg is truncated" for index in (1, 3)}
    assert set(torch.cat([batch.image_index for batch in stream]).tolist()) == {
        0,
        2,
        4,
    }  # and no second warning


def test_ranks_keep_step_when_one_of_them_skips() -> None:
    lengths = []
    for rank in range(2):
        stream = sampler(Scenes(6, bad=(1,)), on_bad_image="skip", rank=rank, world_size=2)
        with (
            pytest.warns(UserWarning, match="skipped an image") if 1 in stream_images(stream) else nullcontext()
        ):
            batches = list(stream)
        lengths.append(len(batches))
        assert len(batches) == len(stream)
    assert lengths[0] == lengths[1]


def stream_images(stream: MultiscaleSampler) -> set[int]:
    return {image for group in stream._stream.schedule(0).groups for image in group}


def test_resuming_past_a_skipped_image() -> None:
    def make() -> MultiscaleSampler:
        return sampler(Scenes(bad=(1, 3)), on_bad_image="skip")

    with pytest.warns(UserWarning, match="skipped"):
        whole = [digest(batch) for batch in make()]
    for stop in (0, 3, 5, 11):
        first, second = make(), make()
        stream = iter(first)
        seen = [digest(next(stream)) for _ in range(stop)]
        second.load_state_dict(first.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert seen + [digest(batch) for batch in second] == whole


class Unsized(Scenes):
    """Tells sizes, and cannot read those of bad images."""

    def image_size(self, index: int) -> tuple[int, int]:
        if index in self.bad:
            raise OSError(f"scene{index}.jpg has no header")
        return 30 + 3 * index, 40


class Counted(Scenes):
    """Has a source of its own that knows a bad image by its having no patches, as a cache of features does."""

    def patch_source(self, pixels: PixelSource) -> PixelSource:
        @dataclass(frozen=True)
        class Known(PixelSource):
            def available(self, dataset: Any) -> list[int]:
                tellers = tellers_of(dataset, "bad") or ()
                return [0 if place in data.bad else 40 for data, place in tellers]

            def patches(self, item: Any) -> Tensor:
                return super().patches(item)[:40]

        return Known(*vars(pixels).values())


@pytest.mark.parametrize("bad", [(0,), (1, 2), (0, 4)])
@pytest.mark.parametrize("mix_images", [1, 2])
@pytest.mark.parametrize("data", [Scenes, Unsized, Counted])
@pytest.mark.parametrize(
    "counted",
    [
        {"mode": "test", "patches_per_image": None},
        {"balance": BackgroundFraction(0.3)},
        {"grid": None, "proposals": lambda item: item.boxes},
    ],
)
def test_a_bad_image_never_vanishes_where_patches_are_counted(
    bad: tuple[int, ...], mix_images: int, data: Any, counted: dict[str, Any]
) -> None:
    settings = {"mix_images": mix_images, "shuffle": False, **counted}
    with pytest.raises(DataError, match=f"image {bad[0]} of the data set cannot be used: OSError"):
        list(sampler(data(bad=bad), **settings))
    stream = sampler(data(bad=bad), on_bad_image="skip", **settings)
    len(stream)  # counts, and must not use up the warning
    with pytest.warns(UserWarning, match="skipped" if len(bad) > 1 else "skipped an image"):
        found = torch.cat([batch.image_index for batch in stream])
    assert set(found.tolist()) == {0, 1, 2, 3, 4} - set(bad)
    assert set(stream.bad_images) == set(bad)


def test_a_loop_that_counts_minibatches_is_told_of_bad_images_too() -> None:
    stream = sampler(Scenes(bad=(1,)), on_bad_image="skip", balance=BackgroundFraction(0.3))
    batches = islice(stream, len(stream))  # asks for no more, as Lightning does
    with pytest.warns(UserWarning, match="skipped an image"):
        assert len(list(batches)) == len(stream)


def test_loops_tell_the_epoch_where_they_do_of_a_data_loader_and_none_at_test() -> None:
    stream = sampler()
    stream.batch_sampler.sampler.set_epoch(3)
    assert stream.epoch == 3 and stream.batch_sampler.batch_size == 24
    assert sampler(mode="test").batch_sampler is None


def test_when_every_image_is_bad() -> None:
    with pytest.raises(DataError, match="no image can be used; the first: OSError: scene"):
        list(sampler(Scenes(2, bad=(0, 1)), on_bad_image="skip"))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (SimpleNamespace(image=torch.zeros(3, 4, 4)), "has no boxes and no classes; an adapter"),
        (
            replace(Scenes()[0], image=torch.zeros(1, 3, 40, 40)),
            r"image must be \(C, H, W\) of real numbers, .* got \(1, 3, 40, 40\) torch.float32",
        ),
        (replace(Scenes()[0], classes=torch.tensor([1])), "there are 2 objects, but classes"),
        (replace(Scenes()[0], boxes=[[0, 0, 9, 9]]), "boxes must be a tensor, got list"),  # type: ignore[arg-type]
    ],
)
def test_an_item_that_is_no_annotated_image(item: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(sampler([item]))


def test_an_object_s_class_has_a_name() -> None:
    class Named(Scenes):
        class_names = ("background", "cat", "dog")

    two = Named(1)
    two.class_names = ("background", "cat", "dog", "cow")  # type: ignore[assignment]
    list(sampler(ConcatDataset([two, Named(2)])))
    with pytest.raises(
        DataError, match=r"image 3 .* has class 3, but class_names has 3 names.*: classes 1 to 2"
    ):
        list(sampler(ConcatDataset([two, Named(5)]), shuffle=False))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((9,), 1), r"rule must label \d+ patches with \(P,\) int64, .* got tensor"),
        (lambda boxes: boxes[:, 0] * 0 + 1.9, r"got tensor\(\[1.9000, "),
        (lambda boxes: torch.full((len(boxes),), -1), r"0 or more or IGNORE \(-100\), got tensor\(\[-1, "),
        (lambda boxes: [1] * len(boxes), r"got \[1, "),
    ],
)
def test_a_rule_s_labels_are_checked(labels: Any, message: str) -> None:
    class Own:
        def label(self, boxes: Tensor, objects: Objects) -> PatchLabels:
            given = labels(boxes) if callable(labels) else labels
            return PatchLabels(given, torch.full((len(boxes),), -1))

    with pytest.raises(DataError, match=message):
        list(sampler(rule=Own()))


def test_items_need_neither_difficult_nor_truncated() -> None:
    item = Scenes()[0]
    bare = SimpleNamespace(image=item.image, boxes=item.boxes, classes=item.classes)
    assert patches(sampler([bare])) == patches(sampler([item]))


def test_a_state_is_small_and_plain() -> None:
    state = sampler(transforms=(RandomFlip(),), mix_images=2).state_dict()
    assert all(value is None or isinstance(value, (str, int, float, bool)) for value in state.values())
    assert len(repr(state)) < 1500


def test_a_state_after_the_epoch_is_before_the_next() -> None:
    first, second = sampler(), sampler()
    list(first)
    second.load_state_dict(first.state_dict())
    assert second.epoch == 1
    assert patches(second) == patches(first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 14}, "seed: 13 when it was saved, 14 now"),
        ({"rule": IoURule()}, "rule: .*OverlapRule.* when it was saved, .*IoURule"),
        ({"grid": PatchGrid(density=1)}, "grid: .*PatchGrid.*density=2.* when it was saved"),
        ({"dataset": Scenes(6)}, "images: 5 when it was saved, 6 now"),
        ({"mode": "test"}, "mode: 'train' when it was saved, 'test' now"),
    ],
)
def test_a_state_of_other_data_or_settings_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StateError, match=message):
        sampler(**changes).load_state_dict(sampler().state_dict())


def test_other_ranks_and_minibatches_go_on_from_an_epoch_s_border_alone() -> None:
    alone = sampler()
    alone.set_epoch(1)
    ranks = [sampler(world_size=2, rank=rank, batch_size=10) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(alone.state_dict())
    together = sorted(patch for rank in ranks for patch in patches(rank))
    assert together == patches(alone)
    next(iter(alone))
    with pytest.raises(StateError, match="(?s)batch_size: 24 when.*, 10 now.*world_size: 1 when.*, 2 now"):
        ranks[0].load_state_dict(alone.state_dict())


def test_a_state_knows_the_names_of_its_images() -> None:
    class Named(Scenes):
        def __init__(self, ids: list[str]) -> None:
            super().__init__(len(ids))
            self.ids = ids

    sampler(Named(["a", "b"])).load_state_dict(sampler(Named(["a", "b"])).state_dict())
    with pytest.raises(StateError, match="ids: '.*' when it was saved, '.*' now"):
        sampler(Named(["a", "c"])).load_state_dict(sampler(Named(["a", "b"])).state_dict())
    data = Named(["a", "b", "c", "d"])
    sampler(Subset(data, [0, 1])).load_state_dict(sampler(Named(["a", "b"])).state_dict())
    with pytest.raises(StateError, match="ids: '.*' when it was saved, '.*' now"):
        sampler(Subset(data, [2, 3])).load_state_dict(sampler(Subset(data, [0, 1])).state_dict())


def test_what_does_not_change_the_patches_may_change() -> None:
    sampler(num_workers=2, prefetch=1, on_bad_image="skip").load_state_dict(sampler().state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": None}, "patches must come from somewhere"),
        ({"mode": "validate"}, "mode must be"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"patches_per_image": 0}, "patches_per_image must be 1 or more"),
        ({"patch_size": (16, 32)}, r"patch_size must be 1 or more, got \(16, 32\)"),
        ({"mix_images": 0}, "mix_images must be 1 or more"),
        ({"num_workers": -1}, "num_workers must be 0 or more"),
        ({"on_bad_image": "warn"}, "on_bad_image must be"),
        ({"rank": 2, "world_size": 2}, "rank must be from 0 to world_size - 1 = 1, got 2"),
        ({"dataset": []}, "dataset must be not empty"),
        ({"rule": 0.5}, "rule must be a value with a method label"),
        ({"balance": 0.1}, "balance must be called as"),
        ({"grid": 64}, r"grid must be called with \(height, width\), or None, got 64"),
        ({"maps": {"mask": "cubic"}}, "maps must be 'bilinear' or 'nearest' by name, got 'cubic'"),
        (
            {"labels": lambda item, boxes: boxes, "rule": IoURule()},
            "rule must be left out where labels are given",
        ),
        ({"proposals": torch.zeros(1, 4)}, "proposals must be called with an item"),
        (
            {"dtype": torch.int32},
            "dtype must be None for the image's own, torch.uint8 or floating, got torch.int32",
        ),
    ],
)
def test_arguments_are_checked(changes: dict[str, Any], message: str) -> None:
    settings = {"dataset": Scenes(), **changes}
    with pytest.raises(ArgumentError, match=message):
        MultiscaleSampler(**settings)


def test_on_any_device(device: torch.device) -> None:
    for mix_images in (1, 2):
        alone = [batch.labels.tolist() for batch in sampler(mix_images=mix_images)]
        there = list(sampler(mix_images=mix_images, device=device, transforms=(RandomFlip(), ColorJitter())))
        assert all(batch.pixels.device.type == batch.labels.device.type == device.type for batch in there)
        assert [batch.labels.tolist() for batch in there] == alone
