"""The benchmarks run: each member of the suite on next to nothing, and the page that comes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.benchmarks.__main__ import main
from tests.benchmarks.made_up import write_made_up_devkit
from tests.benchmarks.members import MEMBERS, ON_GPU
from tests.benchmarks.plain import PhotoPatches, every_patch, positives_first
from tests.benchmarks.setting import Photos
from tests.benchmarks.table import Table
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
