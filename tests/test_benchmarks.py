"""The benchmarks run: each member of the suite on next to nothing, and the page that comes of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.benchmarks.__main__ import main
from tests.benchmarks.made_up import write_made_up_devkit
from tests.benchmarks.members import MEMBERS, ON_GPU
from tests.benchmarks.plain import PhotoPatches, every_patch, positives_first
from tests.benchmarks.setting import Photos
from tests.benchmarks.table import Table
from tests.benchmarks.waiting import AlreadyThere, Watched
from transferkit.alexnet import AlexNet
from transferkit.sampler import MultiscaleSampler


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


SLOW = {"scores_on_photos"}  # it trains heads for as many epochs as ever, and writes a report


@pytest.mark.parametrize(
    "name",
    [pytest.param(m.name, marks=pytest.mark.slow if m.name in SLOW else ()) for m in (*MEMBERS, *ON_GPU)],
)
def test_a_member_of_the_suite_runs_and_its_tables_are_on_the_page(
    name: str, devkit: Path, weights: Path, tmp_path: Path
) -> None:
    arguments = ["--data_dir", str(devkit), "--weights", str(weights), "--out", str(tmp_path), "--quick"]
    suite = ["--gpu"] if name in {member.name for member in ON_GPU} else []
    status = main([*arguments, *suite, "--only", name])

    outcome = json.loads((tmp_path / f"{name}.json").read_text())
    assert outcome["status"] == status == 0
    assert outcome["tables"] and all(table["rows"] for table in outcome["tables"])
    page = (tmp_path / "benchmarks.md").read_text()
    assert all(table["title"] in page for table in outcome["tables"])
    assert str(devkit) not in page and outcome["machine"]["processor"] in page


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
    _, patches, labels = PhotoPatches(photos.paths, photos.boxes, photos.labels, every_patch)[1]

    sampler = MultiscaleSampler(photos.data, mode="test", patches_per_image=16, batch_size=16, seed=13)
    batch = list(sampler)[1]
    assert torch.equal(batch.boxes, photos.boxes[1]) and torch.equal(batch.labels, labels)
    differences = (batch.pixels.int() - patches.int()).abs()
    assert differences.double().mean() <= 1 and differences.max() <= 3


def test_the_yardstick_trains_on_all_positives_and_fills_up_with_background() -> None:
    labels = torch.tensor([0, 3, 0, 0, 5, 0])
    rows = positives_first(labels, 4)
    assert sorted(labels[rows].tolist()) == [0, 0, 3, 5] and len(set(rows.tolist())) == 4


def test_a_cell_of_several_rounds_shows_median_and_range() -> None:
    table = Table("Two ways", {"way": "", "seconds": ".1f"})
    table.add("ours", [2.0, 1.0, 4.0])
    table.add("theirs", None)
    assert "| ours | 2.0 (1.0 to 4.0) |\n| theirs | not measured |" in table.markdown()
    with pytest.raises(ValueError, match="3 cells for the 2 columns"):
        table.add("a", 1.0, 2.0)
