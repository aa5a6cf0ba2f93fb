"""What the how-to's table says of other libraries, where running them shows it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

torchgeo_samplers = pytest.importorskip("torchgeo.samplers")
tio = pytest.importorskip("torchio")
pytest.importorskip("monai")
slicing = pytest.importorskip("sahi.slicing")

import rasterio  # noqa: E402
import torchgeo.datasets as geodata  # noqa: E402
from monai.data import DataLoader as MonaiLoader  # noqa: E402
from monai.data import Dataset as MonaiDataset  # noqa: E402
from monai.data import MetaTensor  # noqa: E402
from monai.inferers import sliding_window_inference  # noqa: E402
from monai.transforms import RandSpatialCropSamples, SpatialCrop  # noqa: E402
from monai.utils import set_determinism  # noqa: E402

from tests.docs.pages import ROOT  # noqa: E402
from transferkit.sampler import MultiscaleSampler, Tiles, crop_and_resize  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")
PAGE = (ROOT / "docs/how-to/reuse-the-sampler.md").read_text(encoding="utf-8")


def row(name: str) -> list[str]:
    """What the table says: of this sampler, torchgeo, TorchIO, MONAI, SAHI."""
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def same_for_any_workers(epoch: Callable[[int], Tensor]) -> bool:
    alone = epoch(0)
    return all(torch.equal(alone, epoch(workers)) for workers in (1, 2))


def of_monai(workers: int) -> Tensor:
    set_determinism(0)
    crops = RandSpatialCropSamples((8, 8), num_samples=2, random_size=False)
    data = MonaiDataset([torch.arange(4096.0).reshape(1, 64, 64)] * 4, crops)
    return torch.cat([torch.as_tensor(batch) for batch in MonaiLoader(data, batch_size=1, num_workers=workers)])


def of_torchio(workers: int) -> Tensor:
    torch.manual_seed(0)
    ramp = torch.arange(16.0**3).reshape(1, 16, 16, 16)
    subjects = [tio.Subject(image=tio.ScalarImage(tensor=ramp + place)) for place in range(3)]
    order = {"shuffle_subjects": False, "shuffle_patches": False, "num_workers": workers}
    queue = tio.Queue(tio.SubjectsDataset(subjects), 6, 2, tio.UniformSampler(4), **order)
    return torch.cat([batch["image"]["data"] for batch in tio.SubjectsLoader(queue, batch_size=2)])


@pytest.fixture
def scene(tmp_path: Path) -> Any:
    place = rasterio.transform.from_origin(0, 64, 1, 1)
    form = {"height": 64, "width": 64, "count": 2, "dtype": "uint16", "crs": "EPSG:32633", "transform": place}
    with rasterio.open(tmp_path / "scene.tif", "w", driver="GTiff", **form) as file:
        file.write(np.arange(2 * 64 * 64, dtype=np.uint16).reshape(2, 64, 64))

    class Scene(geodata.RasterDataset):  # type: ignore[misc]
        filename_glob = "*.tif"

    return Scene(str(tmp_path))


def test_the_same_patches_for_any_workers(scene: Any) -> None:
    def of_torchgeo(workers: int) -> Tensor:
        draws = torch.Generator().manual_seed(0)
        where = torchgeo_samplers.RandomGeoSampler(scene, 16, length=6, generator=draws)
        loader = DataLoader(scene, sampler=where, num_workers=workers, collate_fn=geodata.stack_samples)
        return torch.cat([batch["image"] for batch in loader])

    assert of_torchgeo(0).dtype == torch.float32  # of a file of uint16
    said = [cell.split()[0].rstrip(",") for cell in row("same patches for any workers")]
    found = ["yes" if same_for_any_workers(epoch) else "no" for epoch in (of_torchgeo, of_torchio, of_monai)]
    assert said[1:4] == found == ["yes", "yes", "no"]


def test_who_saves_a_state() -> None:
    kinds = (
        MultiscaleSampler,
        torchgeo_samplers.RandomGeoSampler,
        tio.Queue,
        MonaiLoader,
        slicing.SliceImageResult,
    )
    has = ["yes" if hasattr(kind, "state_dict") else "no" for kind in kinds]
    assert row("state is saved, resumes within an epoch") == has == ["yes", "no", "no", "no", "no"]


def test_boxes_of_monai_and_sahi_are_whole_and_its_tiles_are_ours() -> None:
    image = torch.arange(100.0).reshape(1, 10, 10)
    assert SpatialCrop(roi_start=(0.5, 1.2), roi_end=(5.5, 6.1))(image).shape == (1, 5, 5)
    ours = Tiles(256, overlap=64)((500, 700)).tolist()
    theirs = slicing.get_slice_bboxes(
        500, 700, slice_height=256, slice_width=256, overlap_height_ratio=0.25, overlap_width_ratio=0.25
    )
    assert sorted(map(tuple, ours)) == sorted(map(tuple, theirs))


def test_sahi_keeps_types_and_bands() -> None:
    cut = slicing.slice_image(np.full((300, 300, 5), 4000, np.uint16), slice_height=128, slice_width=128)
    assert cut.images[0].dtype == np.uint16 and cut.images[0].shape == (128, 128, 5)


def test_torchio_and_monai_stitch() -> None:
    subject = tio.Subject(image=tio.ScalarImage(tensor=torch.rand(1, 16, 16, 16)))
    tiles = tio.GridSampler(subject, 8, 4)
    whole = tio.GridAggregator(tiles, overlap_mode="hann")
    for batch in tio.SubjectsLoader(tiles, batch_size=1):
        whole.add_batch(batch["image"]["data"], batch["location"])
    assert torch.allclose(whole.get_output_tensor(), subject["image"].data)
    image = torch.rand(1, 1, 50, 50)
    again = sliding_window_inference(image, (16, 16), 2, lambda tiles: tiles, overlap=0.5, mode="gaussian")
    assert torch.allclose(again, image)


def test_who_balances() -> None:
    assert "label_probabilities" in inspect.signature(tio.LabelSampler.__init__).parameters
    assert not any(
        "label" in name for name in inspect.signature(torchgeo_samplers.RandomGeoSampler.__init__).parameters
    )


def test_monais_tensors_are_cut_like_plain_ones() -> None:
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    boxes = torch.tensor([[0.5, 1, 20, 30]])
    patches = crop_and_resize(MetaTensor(image), boxes, 16)
    assert type(patches) is Tensor and torch.equal(patches, crop_and_resize(image, boxes, 16))
