"""Reading a map and choosing pyramid_scales, against slow loops from their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import grid_sample

from transferkit.errors import ArgumentError
from transferkit.features import AxisGeometry, map_coordinates, plan_pyramid, read_map
from transferkit.features.shared import MOST_SCALES
from transferkit.sampler import PatchGrid


def test_a_slow_loop_over_the_definition(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 5, 7, generator=generator)
    down, across = (torch.rand(2, n, generator=generator).double() * 8 - 1 for n in (2, 3))
    read = read_map(maps.to(device), down, across).cpu()
    for p in range(2):
        for i in range(2):
            for j in range(3):
                y, x = min(max(down[p, i].item(), 0), 4), min(max(across[p, j].item(), 0), 6)
                expected = torch.zeros(3)
                for row in range(5):
                    for column in range(7):
                        expected += (
                            maps[:, row, column] * max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
                        )
                torch.testing.assert_close(read[p, :, i, j], expected)


def test_grid_sample_agrees() -> None:
    maps = torch.randn(4, 6, 9)
    down, across = torch.rand(5, 3).double() * 5, torch.rand(5, 4).double() * 8
    grid = torch.stack(
        [(across / 4 - 1)[:, None, :].expand(5, 3, 4), (down / 2.5 - 1)[:, :, None].expand(5, 3, 4)], dim=-1
    )
    expected = grid_sample(maps.expand(5, -1, -1, -1), grid.float(), padding_mode="border", align_corners=True)
    torch.testing.assert_close(read_map(maps, down, across), expected)


def test_at_whole_cells_the_map_itself_is_read_and_one_cell_is_enough() -> None:
    maps = torch.randn(2, 3, 4)
    rows, columns = torch.arange(3.0)[None].double(), torch.arange(4.0)[None].double()
    assert torch.equal(read_map(maps, rows, columns)[0], maps)
    assert torch.equal(read_map(maps[:, :1, :1], rows, columns)[0], maps[:, :1, :1].expand(2, 3, 4))


@given(
    start=st.floats(0, 500), side=st.floats(20, 400), image_scale=st.floats(0.3, 5),
    stride=st.sampled_from([4, 16, 32]), offset=st.floats(-8, 40),
)  # fmt: skip
def test_coordinates_name_the_point_that_the_cell_looks_at_in_the_patch(
    start: float, side: float, image_scale: float, stride: int, offset: float
) -> None:
    axis = AxisGeometry(stride, offset, 2 * stride)
    u = map_coordinates(torch.tensor([[start, start + side]], dtype=torch.float64), image_scale, 224, axis, 7)[
        0
    ]
    for i in range(7):
        in_patch = (offset + stride * i) / 224  # as part of the patch's side
        in_image = start + in_patch * side  # pixels of the image
        in_map = (in_image * image_scale - offset) / stride
        assert u[i].item() == pytest.approx(in_map, abs=1e-6)


def test_each_size_of_the_grid_has_a_level_of_its_own() -> None:
    grid = PatchGrid()
    counts = grid.counts((375, 500))
    plan = plan_pyramid(grid((375, 500)), (375, 500), 224, None)
    assert plan.scales.tolist() == pytest.approx(
        [224 * float(scale) / 374 for scale in grid.scales[: len(counts)]]
    )
    assert torch.bincount(plan.scale_of).tolist() == list(counts)


@pytest.mark.parametrize("pyramid_scales", [1, 2, 4, 6, (1, 2, 4)])
def test_each_patch_takes_the_level_nearest_in_proportion(pyramid_scales: int | tuple[float, ...]) -> None:
    boxes = PatchGrid()((375, 500))
    plan = plan_pyramid(boxes, (375, 500), 224, pyramid_scales)
    assert len(plan.scales) == (pyramid_scales if isinstance(pyramid_scales, int) else len(pyramid_scales))
    for box, level in zip(boxes.tolist(), plan.scale_of.tolist(), strict=True):
        wanted = 224 / (box[2] - box[0])
        distances = [abs(math.log(scale / wanted)) for scale in plan.scales.tolist()]
        assert distances[level] == pytest.approx(min(distances))


def test_more_sizes_than_levels_are_spread_and_levels_without_patches_left_out() -> None:
    sides = torch.linspace(20, 200, 100, dtype=torch.float64)
    boxes = torch.stack([torch.zeros(100), torch.zeros(100), sides, sides], dim=1).double()
    assert len(plan_pyramid(boxes, (200, 200), 224, None).scales) <= MOST_SCALES
    assert len(plan_pyramid(boxes[:1], (200, 200), 224, (1, 2, 30)).scales) == 1


@pytest.mark.parametrize("boxes", [[[0, 0, 0, 10]], [[5.0, 5, 5, 5]]])
def test_a_box_without_area_is_refused(boxes: list[list[float]]) -> None:
    with pytest.raises(ArgumentError, match="must have an area, got .* at row 0"):
        plan_pyramid(torch.tensor(boxes), (20, 20), 224, None)
