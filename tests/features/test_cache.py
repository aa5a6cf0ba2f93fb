"""A cache gives what there would be without it, and never anything else."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, Subset

from tests.features.scenes import GRID, SIDE, Scenes, backbone, features
from transferkit.errors import ArgumentError, DataError, OutputError, StateError
from transferkit.features import FeatureCache, FeatureImages, PatchFeatures
from transferkit.labeling import CenterRule, OverlapRule
from transferkit.preprocessing import IMAGENET, NEON_IMAGENET
from transferkit.sampler import AllPatches, BackgroundFraction, MultiscaleSampler, PatchGrid, RandomFlip

SETTINGS: dict[str, Any] = {
    "grid": GRID,
    "patch_size": SIDE,
    "patches_per_image": 20,
    "batch_size": 8,
    "seed": 3,
}


def cache_of(folder: Path, scenes: Scenes | None = None, **settings: Any) -> FeatureCache:
    settings = {"features": features(), "precision": torch.float32, **settings}
    made = FeatureCache(folder, settings.pop("features"), scenes or Scenes(), grid=GRID, **settings)
    made.fill()
    return made


def check_same_stream(
    cached: MultiscaleSampler, plain: MultiscaleSampler, exact: PatchFeatures, **close: float
) -> int:
    batches = list(zip(cached, plain, strict=True))
    for one, other in batches:
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.image_index, other.image_index)
        made = exact.of_pixels(other.pixels)
        if close:
            torch.testing.assert_close(one.pixels, made, **close)
        else:
            assert torch.equal(one.pixels, made)
    return len(batches)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mix_images": 3, "rule": CenterRule()},
        {"mix_images": 2, "drop_last": True, "rank": 1, "world_size": 2},
        {"balance": BackgroundFraction(0.5), "shuffle": False},
        {"mode": "test", "balance": AllPatches()},
        {"num_workers": 2},
    ],
    ids=["train", "mixed", "ranks", "by-labels", "test", "workers"],
)
def test_in_float32_the_stream_is_bit_for_bit_that_of_the_images(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    cached = MultiscaleSampler(cache_of(tmp_path), **{**SETTINGS, **settings})
    plain = MultiscaleSampler(Scenes(), **{**SETTINGS, **settings, "num_workers": 0})
    assert len(cached) == len(plain)
    for _ in range(2):
        assert check_same_stream(cached, plain, features()) > 2


@pytest.mark.parametrize("grid", [GRID, None], ids=["grid", "proposals"])
def test_a_part_of_a_cache_is_a_cache_of_the_part(tmp_path: Path, grid: PatchGrid | None) -> None:
    def corners(item: Any) -> torch.Tensor:
        height, width = item.image.shape[-2:]
        return torch.tensor([[0.0, 0, height / 2, height / 2], [width / 2, 0, width, height]])[: 1 + height % 2]

    rows, laid = [4, 0, 2], {"grid": grid, "proposals": None if grid else corners}
    cache = FeatureCache(tmp_path, features(), Scenes(), precision=torch.float32, **laid)
    cache.fill()
    settings = {**SETTINGS, **laid, "balance": AllPatches()}
    part = MultiscaleSampler(Subset(cache, rows), **settings)
    plain = MultiscaleSampler(Subset(Scenes(), rows), **settings)
    assert len(part) == len(plain)
    assert check_same_stream(part, plain, features()) > 2
    with pytest.raises(ArgumentError, match="got a view of 2; make one of the joined images"):
        MultiscaleSampler(ConcatDataset([cache, cache_of(tmp_path / "other")]), **settings)


@pytest.mark.parametrize(("precision", "rtol"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_in_half_precision_it_is_that_but_for_rounding(
    tmp_path: Path, precision: torch.dtype, rtol: float
) -> None:
    cache = cache_of(tmp_path, precision=precision)
    sampler, plain = MultiscaleSampler(cache, **SETTINGS), MultiscaleSampler(Scenes(), **SETTINGS)
    check_same_stream(sampler, plain, features(), rtol=rtol, atol=1e-4)
    assert next(iter(sampler)).pixels.dtype == torch.float32


def train(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for inputs, labels in batches:
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


def test_a_head_trained_from_the_cache_is_the_one_trained_with_the_backbone_in_the_loop(tmp_path: Path) -> None:
    def head() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))

    cached, plain = MultiscaleSampler(cache_of(tmp_path), **SETTINGS), MultiscaleSampler(Scenes(), **SETTINGS)
    exact = features()
    from_cache = train(head(), [(batch.pixels, batch.labels) for _ in range(3) for batch in cached])
    in_loop = train(
        head(), [(exact.of_pixels(batch.pixels), batch.labels) for _ in range(3) for batch in plain]
    )
    assert all(torch.equal(from_cache[name], in_loop[name]) for name in in_loop)


def test_epochs_decode_nothing_and_resume_where_they_were(tmp_path: Path) -> None:
    scenes = Scenes()
    cache = cache_of(tmp_path, scenes)
    scenes.decoded = 0
    sampler = MultiscaleSampler(cache, **SETTINGS)
    whole = [batch.pixels for batch in sampler]
    again = MultiscaleSampler(cache, **SETTINGS)
    stream = iter(again)
    for _ in range(4):
        next(stream)
    resumed = MultiscaleSampler(cache, **SETTINGS)
    resumed.load_state_dict(again.state_dict())
    assert all(torch.equal(one.pixels, other) for one, other in zip(resumed, whole[4:], strict=True))
    assert scenes.decoded == 0


def test_a_run_may_go_on_with_the_cache_where_it_was_without(tmp_path: Path) -> None:
    plain = MultiscaleSampler(Scenes(), **SETTINGS)
    next(iter(plain))
    cached = MultiscaleSampler(cache_of(tmp_path), **SETTINGS)
    cached.load_state_dict(plain.state_dict())
    assert torch.equal(next(iter(cached)).boxes, list(MultiscaleSampler(Scenes(), **SETTINGS))[1].boxes)


def with_weight_moved() -> PatchFeatures:
    made = features()
    with torch.no_grad():
        made.forward.backbone[0].weight[0, 0, 0, 0] += 1e-3
    return made


def with_statistics_moved() -> PatchFeatures:
    made = features()
    made.forward.backbone[1].running_mean[0] += 1e-3
    return made


def with_other_stride() -> PatchFeatures:
    made = features()
    made.forward.backbone[3].stride = 1
    return made


CHANGES: dict[str, Callable[[Path], FeatureCache]] = {
    "a weight": lambda to: FeatureCache(to, with_weight_moved(), Scenes(), grid=GRID),
    "a statistic": lambda to: FeatureCache(to, with_statistics_moved(), Scenes(), grid=GRID),
    "a stride": lambda to: FeatureCache(to, with_other_stride(), Scenes(), grid=GRID),
    "method": lambda to: FeatureCache(to, features(method="shared"), Scenes(), grid=GRID),
    "pyramid_scales": lambda to: FeatureCache(to, features(method="shared", pyramid_scales=2), Scenes(), grid=GRID),
    "preprocessing": lambda to: FeatureCache(to, features(preprocessing=NEON_IMAGENET), Scenes(), grid=GRID),
    "patch size": lambda to: FeatureCache(to, features(patch_size=40), Scenes(), grid=GRID),
    "antialias": lambda to: FeatureCache(to, features(antialias=False), Scenes(), grid=GRID),
    "whole pixels": lambda to: FeatureCache(to, features(whole_pixels=True), Scenes(), grid=GRID),
    "pixels' type": lambda to: FeatureCache(to, features(dtype=torch.float32), Scenes(), grid=GRID),
    "half precision": lambda to: FeatureCache(to, features(amp=True), Scenes(), grid=GRID),
    "precision": lambda to: FeatureCache(to, features(), Scenes(), grid=GRID, precision=torch.float32),
}  # fmt: skip


def test_whatever_changes_the_numbers_changes_the_key(tmp_path: Path) -> None:
    keys = {name: make(tmp_path).key for name, make in CHANGES.items()}
    keys["nothing"] = FeatureCache(tmp_path, features(), Scenes(), grid=GRID).key
    assert len(set(keys.values())) == len(keys)
    # A batch size changes no number, photos and patches are told one by one; the same things made anew are the same.
    assert FeatureCache(tmp_path, features(batch_size=5), Scenes(4), grid=PatchGrid()).key == keys["nothing"]


LAID: dict[str, dict[str, Any]] = {
    "another grid": {"grid": PatchGrid(scales=(1, 1.6, 2.5), target=None)},
    "a function": {"grid": lambda size: GRID(size)[:5]},
    "another function": {"grid": lambda size: GRID(size)[5:]},
    "proposals": {"proposals": lambda item: item.boxes},
    "other proposals": {"proposals": lambda item: item.boxes / 2},
}


def test_patches_are_told_by_what_they_are_whatever_laid_them(tmp_path: Path) -> None:
    cache_of(tmp_path)
    for laid in LAID.values():
        settings = {**SETTINGS, "grid": GRID, **laid, "balance": AllPatches()}
        made = FeatureCache(tmp_path, features(), Scenes(), precision=torch.float32, **{"grid": GRID, **laid})
        assert made.missing() == [0, 1, 2, 3, 4]
        made.fill()
        check_same_stream(
            MultiscaleSampler(made, **settings), MultiscaleSampler(Scenes(), **settings), features()
        )
    assert cache_of(tmp_path).missing() == []


def test_functions_that_lay_patches_are_not_told_by_their_names(tmp_path: Path) -> None:
    grids = [lambda size, number=number: GRID(size)[:number] for number in (4, 6)]
    cache = FeatureCache(tmp_path, features(), Scenes(), grid=grids[0])
    cache.fill()
    with pytest.raises(ArgumentError, match="grid: .*another of that name"):
        MultiscaleSampler(cache, **{**SETTINGS, "grid": grids[1]})


def test_code_of_ones_own_is_part_of_the_key(tmp_path: Path) -> None:
    class Doubled(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels * 2

    first = FeatureCache(tmp_path, PatchFeatures(Doubled(), patch_size=8), Scenes(), grid=GRID).key

    class Doubled(nn.Module):  # type: ignore[no-redef]
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels * 3

    assert FeatureCache(tmp_path, PatchFeatures(Doubled(), patch_size=8), Scenes(), grid=GRID).key != first


def test_a_damaged_manifest_is_written_again(tmp_path: Path) -> None:
    path = cache_of(tmp_path).folder / "manifest.json"
    whole = path.read_bytes()
    for damaged in (
        b"",
        whole[:30],
        whole.replace(b'"antialias": true', b'"antialias": false'),
        b"[" * 100_000,
    ):
        path.write_bytes(damaged)
        assert cache_of(tmp_path).folder == path.parent and path.read_bytes() == whole


def test_a_sampler_of_other_patches_is_refused_with_both_sides(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    with pytest.raises(ArgumentError, match="patch_size: 32 for the features, 48 for the sampler"):
        MultiscaleSampler(cache, **{**SETTINGS, "patch_size": 48})
    with pytest.raises(ArgumentError, match="grid: .* for the features"):
        MultiscaleSampler(cache, **{**SETTINGS, "grid": PatchGrid()})
    for changes in ({"transforms": [RandomFlip()]}, {"maps": {"mask": "nearest"}}):
        with pytest.raises(ArgumentError, match="transforms change pixels"):
            MultiscaleSampler(cache, **changes, **SETTINGS)  # type: ignore[arg-type]


def test_random_proposals_and_other_than_rgb_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="proposals must be called with an item alone"):
        cache_of(tmp_path, proposals=lambda item, generator: torch.rand(3, 4, generator=generator))
    bands = replace(Scenes()[0], image=torch.zeros(13, 40, 60, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"image must be a \(3, H, W\) uint8 tensor, got \(13, 40, 60\)"):
        list(MultiscaleSampler(FeatureImages([bands], features()), **SETTINGS))


def test_one_that_is_not_filled_is_refused(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, features(), Scenes(), grid=GRID)
    with pytest.raises(StateError, match="5 of 5 images are not in the cache.*fill it first"):
        MultiscaleSampler(cache, **SETTINGS)
    with pytest.raises(DataError, match="image 0 is not in the cache"):
        cache[0]


def test_a_broken_image_is_treated_as_without_a_cache(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, Scenes(broken=1))
    assert cache.missing() == []
    with pytest.raises(DataError, match="image 1 of the data set cannot be used.*truncated file"):
        list(MultiscaleSampler(cache, **SETTINGS))
    cached = MultiscaleSampler(cache, on_bad_image="skip", **SETTINGS)
    plain = MultiscaleSampler(Scenes(broken=1), on_bad_image="skip", **SETTINGS)
    with pytest.warns(UserWarning, match="skipped an image"):
        assert check_same_stream(cached, plain, features()) > 2


def test_size_is_told_before_and_is_about_right(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, features(), Scenes(), grid=GRID)
    before = cache.size()
    assert (before.exact, before.written, before.images) == (True, 0, 5)
    cache.fill()
    after = cache.size()
    assert (
        after.written <= before.needed < 2 * after.written
    )  # notes, which are rounded up, are half of it here
    proposals = FeatureCache(
        tmp_path / "empty", features(), Scenes(30), grid=None, proposals=lambda item: item.boxes
    ).size()
    assert (proposals.exact, proposals.patches) == (False, 60)
    assert str(proposals).startswith("about")


def test_a_limit_stops_it_before_it_begins(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, features(), Scenes(), grid=GRID, limit=1000)
    with pytest.raises(OutputError, match=r"needs .*kB for .* patches.*limit of 1 kB; raise the limit"):
        cache.fill()
    assert len(cache.missing()) == 5


def test_a_full_disk_is_noticed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transferkit.features.cache.free_bytes", lambda folder: 10)
    with pytest.raises(OutputError, match="10 bytes free.*choose another disk"):
        FeatureCache(tmp_path, features(), Scenes(), grid=GRID).fill()


def test_what_half_precision_cannot_hold_is_an_error(tmp_path: Path) -> None:
    loud = features()
    with torch.no_grad():
        loud.forward.backbone[4].weight.mul_(1e7)
    with pytest.raises(ArgumentError, match=r"float16 cannot hold the features of image 0.*use torch.bfloat16"):
        FeatureCache(tmp_path, loud, Scenes(), grid=GRID).fill()
    FeatureCache(tmp_path, loud, Scenes(), grid=GRID, precision=torch.bfloat16).fill()


def test_ranks_share_the_work_and_make_the_same_files(tmp_path: Path) -> None:
    whole = cache_of(tmp_path / "one")
    shared = FeatureCache(tmp_path / "two", features(), Scenes(), grid=GRID, precision=torch.float32)
    missing = [shared.missing()]
    for rank in (1, 0):
        shared.fill(rank=rank, world_size=2)
        missing.append(shared.missing())
    assert missing == [[0, 1, 2, 3, 4], [0, 2, 4], []]
    assert files_of(shared) == files_of(whole)


def files_of(cache: FeatureCache) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(cache.folder.glob("*.features"))}


@pytest.mark.parametrize("again", [False, True], ids=["same-cache", "made-anew"])
@pytest.mark.parametrize("damage", ["cut", "header", "feature", "patch", "empty", "another's"])
def test_a_damaged_shard_is_missing_and_made_again(tmp_path: Path, damage: str, again: bool) -> None:
    cache = cache_of(tmp_path)
    whole = files_of(cache)
    path, other = (cache.folder / name for name in list(whole)[:2])
    content = bytearray(path.read_bytes())
    content[{"header": 9, "feature": -5, "patch": 260}.get(damage, 0)] ^= 64
    changed = {"cut": bytes(content[:200]), "empty": b"", "another's": other.read_bytes()}
    path.write_bytes(changed.get(damage, bytes(content)))
    if again:
        cache = FeatureCache(tmp_path, features(), Scenes(), grid=GRID, precision=torch.float32)
    (missing,) = cache.missing()
    if damage != "feature":
        with pytest.raises(DataError, match=r"\.features is damaged; delete it and fill the cache again"):
            cache[missing]
    cache.fill()
    assert cache.missing() == [] and files_of(cache) == whole


def test_it_travels_to_other_processes_without_its_network(tmp_path: Path) -> None:
    cache = pickle.loads(pickle.dumps(cache_of(tmp_path)))
    assert torch.equal(cache[3].patches, GRID(Scenes().image_size(3)))
    next(cache.folder.glob("*.features")).unlink()
    with pytest.raises(StateError, match="only reads"):
        cache.fill()


@pytest.mark.parametrize("method", ["exact", "shared"])
def test_computed_as_needed_is_what_the_cache_holds(tmp_path: Path, method: str) -> None:
    images = FeatureImages(Scenes(), features(method=method))
    cache = cache_of(tmp_path, features=features(method=method))
    for mix_images in (1, 2):
        settings = {**SETTINGS, "mix_images": mix_images}
        for one, other in zip(
            MultiscaleSampler(images, **settings), MultiscaleSampler(cache, **settings), strict=True
        ):
            torch.testing.assert_close(one.pixels, other.pixels)
            assert torch.equal(one.boxes, other.boxes)


def test_features_cut_otherwise_than_the_sampler_wants_are_refused() -> None:
    images = FeatureImages(Scenes(), features(whole_pixels=True))
    with pytest.raises(ArgumentError, match="whole_pixels: True for the features, False for the sampler"):
        MultiscaleSampler(images, **SETTINGS)


def test_rules_may_change_without_a_new_cache(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    one, other = (
        torch.cat(
            [
                batch.labels
                for batch in MultiscaleSampler(
                    cache, mode="test", rule=rule, balance=AllPatches(), grid=GRID, patch_size=SIDE
                )
            ]
        )
        for rule in (OverlapRule(), OverlapRule(patch_fraction=0.02, object_fraction=0.2))
    )
    assert (one > 0).sum() < (other > 0).sum()


def test_preprocessing_is_applied_once(tmp_path: Path) -> None:
    scenes = Scenes(1)
    cache = cache_of(tmp_path, scenes)
    with torch.no_grad():
        expected = backbone().eval()(
            IMAGENET(
                next(
                    iter(
                        MultiscaleSampler(
                            scenes,
                            mode="test",
                            balance=AllPatches(),
                            grid=GRID,
                            patch_size=SIDE,
                            batch_size=999,
                        )
                    )
                ).pixels
            )
        )
    found = torch.from_numpy(cache[0].features.copy())
    torch.testing.assert_close(found, expected)


def test_features_of_an_earlier_version_are_told_and_computed_anew(tmp_path: Path) -> None:
    old = FeatureCache(tmp_path, features(), Scenes(), grid=GRID)
    old.fill()
    manifest = json.loads((old.folder / "manifest.json").read_text())
    old.folder.rename(tmp_path / "earlier")
    (tmp_path / "earlier" / "manifest.json").write_text(
        json.dumps({**manifest, "version": 1, "trunk": "other"})
    )
    with pytest.warns(UserWarning, match="they are not read, but computed anew. Delete earlier"):
        cache = FeatureCache(tmp_path, features(), Scenes(), grid=GRID)
    assert len(cache.missing()) == len(cache)
    FeatureCache(tmp_path, features(), Scenes(), grid=GRID)  # told once
