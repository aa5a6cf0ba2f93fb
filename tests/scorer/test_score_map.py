"""Maps against a loop over pixels and patches; peaks and boxes on maps drawn by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transferkit.errors import ArgumentError
from transferkit.scorer import map_box, map_peak, score_map


@given(seed=st.integers(0, 10**6), height=st.integers(1, 12), width=st.integers(1, 12), count=st.integers(0, 8))
@settings(deadline=None, max_examples=60)
def test_equals_a_loop_over_pixels(seed, height, width, count):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.rand(count, 3, generator=generator)
    corners = torch.rand(count, 4, generator=generator) * 16 - 2  # also outside the image
    start, end = corners.reshape(count, 2, 2).sort(dim=1).values.unbind(dim=1)
    boxes = torch.cat([start, end], dim=1)
    found = score_map(probs, boxes, (height, width), exponent=2)
    for y in range(height):
        for x in range(width):
            expected = torch.zeros(3, dtype=torch.float64)
            for p, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
                u, v = (2 * (x + 0.5) - x0 - x1) / (x1 - x0), (2 * (y + 0.5) - y0 - y1) / (y1 - y0)
                if abs(u) < 1 and abs(v) < 1:
                    expected += probs[p].double() ** 2 * (1 - abs(u)) * (1 - abs(v))
            torch.testing.assert_close(found[:, y, x], expected, rtol=1e-6, atol=1e-7)


def test_a_batch_of_classes_equals_each_alone_and_one_patch_is_highest_in_its_middle():
    probs, box = torch.tensor([[0.5, 1.0]]), torch.tensor([[0.0, 0, 5, 3]])
    both = score_map(probs, box, (3, 5), exponent=1)
    assert both[1].amax() == both[1, 1, 2] == 1
    assert map_peak(both[0]) == (2.5, 1.5)
    assert torch.equal(both[:1], score_map(probs[:, :1], box, (3, 5), exponent=1))


def test_the_best_patch_alone_counts_at_infinity():
    probs = torch.tensor([[0.5, 0.1], [0.4, 0.9], [0.3, 0.0]])
    boxes = torch.tensor([[0.0, 0, 4, 4], [3, 3, 9, 9], [2, 2, 8, 8]])
    maps = score_map(probs, boxes, (9, 9), exponent=float("inf"))
    for k, best in enumerate((0, 1)):
        alone = score_map(probs[best : best + 1, k : k + 1], boxes[best : best + 1], (9, 9), exponent=1)
        assert torch.equal(maps[k : k + 1], alone)
    assert score_map(probs[:0], boxes[:0], (3, 4), exponent=float("inf")).shape == (2, 3, 4)


def test_the_peak_of_a_flat_top_is_its_middle():
    values = torch.zeros(9, 9)
    values[2:7, 4:7] = 1.0
    assert map_peak(values) == (5.5, 4.5)
    assert map_peak(torch.zeros(5, 7)) == (3.5, 2.5)


def test_the_peak_lies_on_the_top_even_if_the_middle_does_not():
    values = torch.zeros(5, 5)
    values[0, 0] = values[0, 4] = values[4, 0] = 1.0
    x, y = map_peak(values)
    assert values[int(y), int(x)] == 1


def test_the_box_holds_what_hangs_together_with_the_peak():
    values = torch.zeros(6, 10)
    values[1, 1:6] = 0.6
    values[1:5, 5] = 0.6
    values[4, 5:8] = 1.0  # joined to the rest only by its end
    values[5, 9] = 0.9  # touches at no side
    assert map_box(values).tolist() == [1, 1, 8, 5]
    assert map_box(values, threshold=0.7).tolist() == [5, 4, 8, 5]
    assert map_box(torch.zeros(3, 4)).tolist() == [0, 0, 4, 3]


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=40)
def test_the_box_equals_a_flood_fill(seed):
    values = torch.rand(8, 9, generator=torch.Generator().manual_seed(seed)).double()
    mask = values >= 0.5 * values.max() * (1 - 1e-9)
    x, y = map_peak(values)
    stack, seen = [(int(y), int(x))], set()
    while stack:
        r, c = stack.pop()
        if (r, c) in seen or not (0 <= r < 8 and 0 <= c < 9) or not mask[r, c]:
            continue
        seen.add((r, c))
        stack += [(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)]
    rows, columns = [r for r, _ in seen], [c for _, c in seen]
    assert map_box(values, threshold=0.5).tolist() == [min(columns), min(rows), max(columns) + 1, max(rows) + 1]


def test_refuses_what_it_cannot_draw():
    with pytest.raises(ArgumentError, match=r"boxes must be \(3, 4\), one per patch"):
        score_map(torch.rand(3, 2), torch.rand(2, 4), (5, 5))
    with pytest.raises(ArgumentError, match="exponent must be positive"):
        score_map(torch.rand(3, 2), torch.rand(3, 4), (5, 5), exponent=0)
    with pytest.raises(ArgumentError, match="threshold"):
        map_box(torch.rand(3, 2), threshold=0)


def test_a_coarser_map_is_that_of_a_smaller_image():
    source = torch.Generator().manual_seed(0)
    probs, corners = torch.rand(9, 2, generator=source), torch.rand(9, 2, generator=source) * 200
    boxes = torch.cat([corners, corners + 50], dim=1)
    coarse = score_map(probs.numpy(), boxes.numpy(), (240, 320), map_size=(30, 40))
    torch.testing.assert_close(coarse, score_map(probs, boxes.double() / 8, (30, 40)))
    assert torch.equal(
        score_map(probs, boxes, (240, 320), map_size=(240, 320)), score_map(probs, boxes, (240, 320))
    )
