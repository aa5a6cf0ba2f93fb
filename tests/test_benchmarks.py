"""The benchmarks run: each member of the suite on next to nothing, and the page that comes of it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.benchmarks import recipes
from tests.benchmarks.__main__ import main
from tests.benchmarks.ablations import BASE, CHANGES, FOLDS, MIRRORED, Mirrored, fold
from tests.benchmarks.curves_plot import plot_curves
from tests.benchmarks.kept_features import kept, score_kept, train_head
from tests.benchmarks.learning_curves import ALEXNET, SCRATCH_RATE, on_pixels, photos_of
from tests.benchmarks.made_up import write_made_up_devkit
from tests.benchmarks.members import MEMBERS, ON_GPU
from tests.benchmarks.parts import Parts
from tests.benchmarks.plain import PhotoPatches, every_patch, loader, normalize, positives_first, score
from tests.benchmarks.plain_training import all_features, timed_epoch
from tests.benchmarks.process_tree import watch
from tests.benchmarks.recipes import EveryPhoto, OnBackbone
from tests.benchmarks.setting import Photos, load_backbone
from tests.benchmarks.shared_maps import fill_together
from tests.benchmarks.suite import in_this_process
from tests.benchmarks.table import Table
from tests.benchmarks.waiting import AlreadyThere, Watched
from transferkit.alexnet import AlexNet
from transferkit.features import FeatureCache, PatchFeatures
from transferkit.finetune import NEON2016, RECOMMENDED
from transferkit.sampler import MultiscaleSampler, PatchGrid


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_made_up_devkit(tmp_path_factory.mktemp("devkit"), {"trainval": 6, "test": 4}, (64, 80))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolutions of AlexNet's shape that have learned nothing."""
    path = tmp_path_factory.mktemp("weights") / "alexnet_features.pth"
    model = AlexNet(hidden=1)
    torch.save(
        {name: tensor for name, tensor in model.state_dict().items() if name.startswith("features")}, path
    )
    return path


TRAINS = {"scores_on_photos", "feature_growth", "feature_scoring", "feature_training"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(m.name, marks=pytest.mark.benchmark_training if m.name in TRAINS else ())
        for m in (*MEMBERS, *ON_GPU)
    ],
)
def test_a_member_of_the_suite_runs_and_its_tables_are_on_the_page(
    name: str, devkit: Path, weights: Path, tmp_path: Path
) -> None:
    data = (
        ["--gpu"]
        if name in {m.name for m in ON_GPU}
        else ["--data_dir", str(devkit), "--weights", str(weights)]
    )
    status = main([*data, "--out", str(tmp_path), "--quick", "--only", name])

    outcome = json.loads((tmp_path / f"{name}.json").read_text())
    assert outcome["status"] == status == 0
    assert outcome["tables"] and all(table["rows"] for table in outcome["tables"])
    page = (tmp_path / "benchmarks.md").read_text()
    assert all(table["title"] in page for table in outcome["tables"])
    assert str(devkit) not in page and outcome["machine"]["processor"] in page


@pytest.mark.benchmark_training
def test_recipes_are_compared_on_next_to_nothing(devkit: Path, weights: Path, tmp_path: Path) -> None:
    arguments = [
        "--data_dir",
        devkit,
        "--weights",
        weights,
        "--out",
        tmp_path,
        "--json",
        tmp_path / "found.json",
    ]
    arguments += ["--photos", 6, "--seeds", 1, "--splits", 0, 1, "--backbones", "alexnet-convolutions"]
    arguments += [
        "--recipes",
        "neon2016",
        "--patches",
        64,
        "--epochs",
        1,
        "--workers",
        0,
        "--threads",
        1,
        "--no-bfloat16",
    ]
    in_this_process(["python", "-m", "tests.benchmarks.recipes", *map(str, arguments)])
    tables = json.loads((tmp_path / "found.json").read_text())
    assert [table["title"][:29] for table in tables] == [f"alexnet-convolutions, split {n}" for n in (0, 1)]
    assert all(0 <= table["rows"][0][1][0] <= 100 for table in tables)


@pytest.mark.benchmark_training
def test_a_recipe_that_was_stopped_goes_on_after_its_last_whole_epoch(
    devkit: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = argparse.Namespace(
        data_dir=devkit, weights=weights, photos=1, bfloat16=False, device="cpu", workers=0
    )
    photos = EveryPhoto(devkit, 1)
    grid = PatchGrid(scales=(1, 1.5))
    protocol = replace(NEON2016, grid=grid, patches_per_image=64, epochs=3, pyramid_scales=(1,), hidden=(8,))

    def on(folder: str) -> OnBackbone:
        return OnBackbone(argparse.Namespace(**vars(options), out=tmp_path / folder), photos, ALEXNET)

    whole: list[str] = []
    said: list[str] = []

    def stop(text: str) -> None:
        said.append(text)
        if text.startswith("epoch 2"):
            raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "say", whole.append)
    on("whole").run(protocol, 0, seed=1)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(recipes, "say", stop)
        on("stopped").run(protocol, 0, seed=1)
    assert len(list(tmp_path.rglob("*.in_progress"))) == 1
    monkeypatch.setattr(recipes, "say", said.append)
    on("stopped").run(protocol, 0, seed=1)
    assert sum("2 epochs done" in text for text in said) == 1
    without_seconds = [
        [text.rsplit("  ", 1)[0] for text in texts if text.startswith("epoch ")] for texts in (said, whole)
    ]
    assert without_seconds[0] == without_seconds[1] and len(set(without_seconds[0])) == 3
    assert not list(tmp_path.rglob("*.in_progress"))


def test_ablations_change_one_thing_and_measure_on_training_photos_alone(devkit: Path) -> None:
    assert next(iter(CHANGES.values())) == BASE
    assert len({repr(protocol) for protocol in CHANGES.values()}) == len(CHANGES)
    for protocol in CHANGES.values():
        changed = {name for name, value in vars(protocol).items() if value != getattr(BASE, name)}
        assert changed <= {"epochs", "scratch", "pretrained"} or len(changed) <= 1, changed
    rows = EveryPhoto(devkit, None).split(0).train
    folds = [fold(rows, number) for number in range(FOLDS)]
    assert sorted(row for split in folds for row in split.test) == rows
    assert all(sorted(split.train + split.test) == rows for split in folds)
    fewer = [fold(rows, number, 2) for number in range(FOLDS)]
    assert all(
        len(few.train) == 2 and set(few.train) < set(all_.train) for few, all_ in zip(fewer, folds, strict=True)
    )
    assert [few.test for few in fewer] == [split.test for split in folds]


def test_mirrored_photos_have_their_objects_where_they_are(devkit: Path) -> None:
    photos = EveryPhoto(devkit, None)
    item, mirrored = photos[2], Mirrored(photos, [5, 2])[1]
    for (left, top, right, bottom), box in zip(item.boxes.long(), mirrored.boxes.long(), strict=True):
        there = mirrored.image[:, box[1] : box[3], box[0] : box[2]]
        assert torch.equal(there.flip(-1), item.image[:, top:bottom, left:right])


@pytest.mark.benchmark_training
def test_ablations_are_compared_on_next_to_nothing(devkit: Path, weights: Path, tmp_path: Path) -> None:
    arguments = ["--data_dir", devkit, "--weights", weights, "--out", tmp_path, "--photos", 3, "--mirrored"]
    arguments += ["--backbones", ALEXNET, "--folds", 1, "--workers", 0, "--threads", 1, "--no-bfloat16"]
    arguments += ["--changes", "4 epochs", "as it is", "--train", 2, "--json", tmp_path / "found.json"]
    in_this_process(["python", "-m", "tests.benchmarks.ablations", *map(str, arguments)])
    (table,) = json.loads((tmp_path / "found.json").read_text())
    assert [row[0] for row in table["rows"]] == ["as it is", MIRRORED, "4 epochs"]
    assert [row[4] for row in table["rows"]] == [[RECOMMENDED.epochs], [RECOMMENDED.epochs], [4]]
    assert table["rows"][0][2] == [0]


def test_learning_curves_draw_their_photos_from_the_training_rows_and_test_on_the_same_ones(
    devkit: Path, weights: Path, tmp_path: Path
) -> None:
    options = argparse.Namespace(
        data_dir=devkit,
        weights=weights,
        out=tmp_path,
        photos=None,
        bfloat16=False,
        device="cpu",
        workers=0,
    )
    on = OnBackbone(options, EveryPhoto(devkit, None), ALEXNET)
    own = on.photos.split(0)
    assert (len(own.train), len(own.test)) == (6, 4)

    for seed in range(3):
        drawn = [photos_of(on, count, seed) for count in (1, 3, 5, 6, 100)]
        assert [len(split.train) for split in drawn] == [1, 3, 5, 6, 6]
        assert all(set(a.train) < set(b.train) for a, b in pairwise(drawn[:4]))
        assert drawn[-1] == drawn[-2] == own
        assert all(split.test == own.test for split in drawn)
        assert photos_of(on, 3, seed) == drawn[1]
    assert len({tuple(photos_of(on, 3, seed).train) for seed in range(5)}) > 1


@pytest.mark.parametrize("transferred", [False, True])
def test_the_recipe_of_learning_curves_on_pixels_leaves_nothing_to_choose(transferred: bool) -> None:
    protocol = on_pixels(argparse.Namespace(patches=None, epochs=None), transferred)
    assert RECOMMENDED.choice is not None and protocol.choice is None
    assert protocol.train_backbone and protocol.features == "exact"
    rate = RECOMMENDED.scratch.learning_rate if transferred else SCRATCH_RATE
    assert protocol.optimization(from_scratch=not transferred).learning_rate == rate
    assert (protocol.epochs, protocol.batch_size) == (RECOMMENDED.epochs, RECOMMENDED.batch_size)


@pytest.mark.benchmark_training
def test_what_transfers_is_measured_on_next_to_nothing(devkit: Path, weights: Path, tmp_path: Path) -> None:
    given = ["--data_dir", devkit, "--weights", weights, "--out", tmp_path, "--photos", 1, "--seeds", 1]
    shorter = ["--patches", 2, "--epochs", 1, "--depth_photos", 1, "--test_pyramid_scales", 1, "--counts", 1]
    arguments = map(str, [*given, *shorter, "--workers", 0, "--threads", 1, "--no-bfloat16", "--no-pretrained"])
    in_this_process(
        ["python", "-m", "tests.benchmarks.learning_curves", *arguments, "--json", str(tmp_path / "found.json")]
    )
    curves, depth = json.loads((tmp_path / "found.json").read_text())
    assert list(curves["columns"]) == ["photos", "alexnet-convolutions, scratch, mAP, %"]
    assert [row[0] for row in depth["rows"]] == [str(first) for first in range(6)]
    assert all((tmp_path / name).is_file() for table in (curves, depth) for name in table["pictures"])


def test_caches_filled_together_hold_what_each_would_and_a_photo_is_shown_once(
    devkit: Path, tmp_path: Path
) -> None:
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 7, 4, 3), torch.nn.ReLU()).eval().requires_grad_(False)
    photos = EveryPhoto(devkit, 2)
    grids = [PatchGrid(scales=(1, 2)), PatchGrid(scales=(1, 1.5, 2), target=None)]

    def cache(folder: str, grid: PatchGrid) -> FeatureCache:
        features = PatchFeatures(backbone, method="shared", pyramid_scales=(1, 2), patch_size=32)
        return FeatureCache(tmp_path / folder, features, photos, grid=grid)

    together = [cache("together", grid) for grid in grids]
    shown: list[torch.Size] = []
    hook = backbone[0].register_forward_hook(lambda module, args, output: shown.append(args[0].shape))
    fill_together(together, num_workers=0)
    hook.remove()
    assert len(shown) == len(photos) * 2

    for grid, found in zip(grids, together, strict=True):
        alone = cache("alone", grid)
        alone.fill()
        for row in range(len(photos)):
            assert np.array_equal(alone[row].features, found[row].features)


def test_learning_curves_are_drawn_into_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib (extra: plots)")
    curves = {"pretrained": {50: [40.0, 42.0], 1000: [60.0, 61.0]}, "scratch": {50: [9.0], 1000: [20.0]}}
    for log in (True, False):
        path = tmp_path / "pictures" / f"{log}.png"
        plot_curves(curves, path, xlabel="training photos", log=log)
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 2  # not an empty canvas


def test_the_suite_keeps_what_was_measured_and_measures_anew_when_told(
    devkit: Path, weights: Path, tmp_path: Path
) -> None:
    arguments = ["--data_dir", str(devkit), "--weights", str(weights), "--out", str(tmp_path), "--quick"]
    arguments += ["--only", "transfer_half_billion"]
    kept = tmp_path / "transfer_half_billion.json"
    for again, same in (([], True), (["--again"], False)):
        main(arguments)
        before = kept.stat().st_mtime_ns
        main([*arguments, *again])
        assert (kept.stat().st_mtime_ns == before) is same


def test_the_gpu_suite_says_so_where_there_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--gpu", "--out", str(tmp_path)]) == 3
    assert "no GPU" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "few"), [("who_is_who", ["--cases", "12"]), ("advice", ["--count", "6"])])
def test_whether_identity_and_advice_hold_is_counted(name: str, few: list[str], tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    in_this_process(["python", "-m", f"tests.benchmarks.{name}", *few, "--json", str(found)])
    (table,) = json.loads(found.read_text())
    counted = [number for number in table["rows"][-1] if isinstance(number, float)]
    assert table["rows"][-1][0] == "all" and sum(counted) >= int(few[1])


def test_waiting_for_slow_input_is_measured_and_input_that_is_there_is_not_waited_for() -> None:
    class Slow:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[int]:
            for number in range(3):
                time.sleep(0.02)
                yield number

    slow, there = (Watched(source, torch.device("cpu")) for source in (Slow(), AlreadyThere(Slow(), kept=2)))
    assert list(slow) == [0, 1, 2] and slow.waited() >= 0.06
    assert list(there) == [0, 1, 0] and there.waited() < 0.01


def test_the_yardstick_works_on_the_sampler_s_patches(devkit: Path) -> None:
    photos = Photos.read(devkit, "test", 2).random_subset(16)
    _, _, patches, labels = PhotoPatches(photos.paths, photos.boxes, photos.labels, every_patch)[1]

    sampler = MultiscaleSampler(photos.data, mode="test", patches_per_image=16, batch_size=16, seed=13)
    batch = list(sampler)[1]
    assert torch.equal(batch.boxes, photos.boxes[1]) and torch.equal(batch.labels, labels)
    differences = (batch.pixels.int() - patches.int()).abs()
    assert differences.double().mean() <= 1 and differences.max() <= 3


def test_the_yardstick_trains_on_all_positives_and_fills_up_with_background() -> None:
    labels = torch.tensor([0, 3, 0, 0, 5, 0])
    rows = positives_first(labels, 4)
    assert sorted(labels[rows].tolist()) == [0, 0, 3, 5] and len(set(rows.tolist())) == 4


def test_an_epoch_of_the_yardstick_and_what_it_left_out_give_the_features_of_all_patches(
    devkit: Path, weights: Path
) -> None:
    whole = Photos.read(devkit, "trainval", 2)
    photos = Photos(whole.data, whole.paths, [b[:12] for b in whole.boxes], [x[:12] for x in whole.labels])
    backbone = load_backbone(weights)
    epoch = timed_epoch(photos, backbone, 21, patches=8, workers=0, parts=2)
    features = all_features(photos, backbone, epoch, workers=0)

    photo_loader = loader(PhotoPatches(photos.paths, photos.boxes, photos.labels, every_patch), workers=0)
    for index, _, patches, _ in photo_loader:
        assert torch.equal(features[index], kept(backbone(normalize(patches))))
    head = train_head(features, photos.labels, 21, epochs=1, seed=0, count=8)
    assert torch.allclose(score_kept(head, features), score(backbone, head, photo_loader, 2), rtol=1e-3)
    assert len(epoch["seconds"]) == 2


def test_parts_of_a_measurement_are_kept_for_the_same_settings_only(tmp_path: Path) -> None:
    calls = []

    def measure() -> list[int]:
        calls.append(1)
        return [len(calls)]

    assert [Parts(tmp_path, photos=2).figures("one", measure) for _ in range(2)] == [[1], [1]]
    assert Parts(tmp_path, photos=3).figures("one", measure) == [2]
    assert [Parts(tmp_path, photos=3).tensors("two", measure) for _ in range(2)] == [[3], [3]]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="memory is read from Linux's /proc")
def test_memory_of_a_command_counts_its_children() -> None:
    child = "import time; held = b'1' * 100_000_000; time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    usage = watch([sys.executable, "-c", parent], every=0.05)
    assert 100 <= usage.own < 300 and usage.seconds >= 1


def test_a_cell_of_several_rounds_shows_median_and_range() -> None:
    table = Table("Two ways", {"way": "", "seconds": ".1f"})
    table.add("ours", [2.0, 1.0, 4.0])
    table.add("theirs", None)
    assert "| ours | 2.0 (1.0 to 4.0) |\n| theirs | not measured |" in table.markdown()
    with pytest.raises(ValueError, match="3 cells for the 2 columns"):
        table.add("a", 1.0, 2.0)
