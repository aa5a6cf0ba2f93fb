"""Shared features are the exact ones wherever they can be, and all ways give one shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.features.networks import SamePadding, SqueezeExcite
from transferkit.alexnet import AlexNet
from transferkit.errors import ArgumentError, UnsharableError
from transferkit.features import PatchFeatures, split_pooling
from transferkit.preprocessing import IMAGENET
from transferkit.sampler import PatchGrid, crop_and_resize

S = 48


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def photo(height: int = 96, width: int = 144) -> torch.Tensor:
    """Smooth enough that resizing it twice is not all that is seen."""
    noise = torch.rand(1, 3, 9, 12, generator=torch.Generator().manual_seed(1)) * 255
    return nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 255).byte()[0]


def unpadded() -> nn.Sequential:
    torch.manual_seed(0)  # the same network at every call
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
    )


def test_without_padding_and_on_the_stride_shared_is_exact() -> None:
    x, y = torch.meshgrid(torch.arange(0, 97, 4), torch.arange(0, 49, 8), indexing="ij")
    boxes = torch.stack([x, y, x + S, y + S], dim=-1).reshape(-1, 4).double()
    exact, shared = (
        PatchFeatures(unpadded(), method=m, patch_size=S)(photo(), boxes) for m in ("exact", "shared")
    )
    torch.testing.assert_close(shared, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_so_it_is_at_other_scales_where_the_image_resizes_to_whole_pixels(scale: int) -> None:
    image = photo(S * 2, S * 3).repeat_interleave(1, dim=1)
    side = 2 * S / scale
    steps = torch.arange(0, (2 * S - side) * scale / 2 + 1, 8) / scale * 2  # on the stride once resized
    boxes = torch.stack([steps, steps, steps + side, steps + side], dim=1).double()
    made = {}
    for method in ("exact", "shared"):
        made[method] = PatchFeatures(unpadded(), method=method, patch_size=S, dtype=torch.float32)(image, boxes)
    torch.testing.assert_close(made["shared"], made["exact"], rtol=1e-4, atol=1e-4)


def test_a_patch_that_moves_with_its_image_keeps_its_features() -> None:
    image = photo()
    moved = torch.zeros_like(image)
    moved[:, 16:, 20:] = image[:, :-16, :-20]
    boxes = torch.tensor([[3.0, 5.0, 3 + S, 5 + S], [33.5, 20.0, 33.5 + S, 20 + S]])
    features = PatchFeatures(unpadded(), method="shared", patch_size=S)
    shifted = features(moved, boxes + torch.tensor([20.0, 16, 20, 16]))
    torch.testing.assert_close(shifted, features(image, boxes), rtol=1e-5, atol=1e-5)


def test_between_cells_values_are_between_theirs() -> None:
    # A backbone that is linear in position: its map is a ramp, so reading between cells is exact there too.
    backbone = nn.AvgPool2d(4)
    ramp = torch.arange(128).expand(3, 64, 128).byte()
    boxes = torch.tensor([[5.0, 3.0, 5.0 + 32, 3 + 32], [7.25, 0.0, 7.25 + 32, 32]])
    made = [
        PatchFeatures(backbone, pool=nn.Identity(), method=m, patch_size=32, dtype=torch.float32)(ramp, boxes)
        for m in ("exact", "shared")
    ]
    torch.testing.assert_close(made[1], made[0], rtol=1e-5, atol=1e-5)


def test_exact_is_what_the_network_computes_from_each_patch() -> None:
    network = AlexNet(5, channels=(4, 4, 8, 8, 8), hidden=8).eval()
    image, boxes = photo(), PatchGrid(scales=(1, 1.3), target=None)((96, 144))
    features = PatchFeatures(network.features, patch_size=64, batch_size=5)
    with torch.no_grad():
        expected = network.features(IMAGENET(crop_and_resize(image, boxes, 64)))
    torch.testing.assert_close(features(image, boxes), expected)
    assert features.shape == expected.shape[1:]
    torch.testing.assert_close(features.of_pixels(crop_and_resize(image, boxes, 64)), expected)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_the_minibatch_changes_no_bit(batch_size: int) -> None:
    backbone = unpadded()
    boxes = PatchGrid(scales=(1, 1.6), target=None)((96, 144))[:11]
    whole = PatchFeatures(backbone, patch_size=S, batch_size=11)(photo(), boxes)
    assert torch.equal(PatchFeatures(backbone, patch_size=S, batch_size=batch_size)(photo(), boxes), whole)


@pytest.mark.parametrize("pyramid_scales", [None, 3, 1, (1, 2)])
@pytest.mark.parametrize("whole_pixels", [False, True])
def test_shared_is_like_exact_for_every_choice_of_levels(pyramid_scales: object, whole_pixels: bool) -> None:
    image, boxes = photo(), PatchGrid(scales=(1, 1.3, 1.6, 2), target=None)((96, 144))
    settings = {"patch_size": S, "whole_pixels": whole_pixels}
    backbone = nn.Sequential(nn.Conv2d(3, 6, 5, 2, 2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 6, 3, 1, 1))
    exact = PatchFeatures(backbone, **settings)(image, boxes)
    shared = PatchFeatures(backbone, method="shared", pyramid_scales=pyramid_scales, **settings)(image, boxes)
    inner = (..., slice(2, -2), slice(2, -2))  # cells whose sight ends inside the patch
    alike = torch.cosine_similarity(
        (shared - exact.mean())[inner].flatten(1), (exact - exact.mean())[inner].flatten(1)
    )
    assert shared.shape == exact.shape
    assert alike.min() > (0.97 if pyramid_scales is None or pyramid_scales == 3 else 0.85)


def test_a_network_that_pads_by_its_input_is_shared_at_sizes_like_the_patch() -> None:
    backbone = nn.Sequential(SamePadding(3, 4, 3, 2), nn.ReLU(), SamePadding(4, 4, 3, 2))
    image = photo(97, 143)
    boxes = torch.tensor([[16.0, 12.0, 16 + S, 12 + S], [40.0, 40.0, 40 + S, 40 + S]])
    made = [PatchFeatures(backbone, method=m, patch_size=S)(image, boxes) for m in ("exact", "shared")]
    inner = (..., slice(2, -2), slice(2, -2))
    # The image is resized to 96 x 144, one pixel from its own size, so that it pads as a patch does.
    one, other = ((features - made[0].mean())[inner].flatten(1) for features in made)
    assert torch.cosine_similarity(one, other).min() > 0.98


def test_a_backbone_that_cannot_be_shared_names_the_exact_way_or_takes_it() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), SqueezeExcite(4))
    with pytest.raises(UnsharableError, match="Sequential cannot be shared.*squeeze.*use method='exact'"):
        PatchFeatures(backbone, method="shared", patch_size=S)
    with pytest.warns(UserWarning, match="cannot be shared between patches"):
        features = PatchFeatures(backbone, method="auto", patch_size=S)
    assert (features.method, "squeeze" in str(features.why_exact)) == ("exact", True)
    boxes = torch.tensor([[0.0, 0, 20, 20]])
    assert torch.equal(features(photo(), boxes), PatchFeatures(backbone, patch_size=S)(photo(), boxes))


def test_memory_is_bounded_by_the_largest_image_shown() -> None:
    seen: list[int] = []
    backbone = nn.Conv2d(3, 2, 3, 2)
    backbone.register_forward_hook(lambda module, args, output: seen.append(args[0][0, 0].numel()))
    features = PatchFeatures(backbone, method="shared", patch_size=S, most_pixels=20_000)
    seen.clear()
    features(photo(), torch.tensor([[0.0, 0, 6, 6], [10, 10, 80, 80]]))
    assert seen and max(seen) <= 20_000 * 1.02


def test_no_boxes_give_no_features_and_modes_are_left_alone(device: torch.device) -> None:
    backbone = unpadded().to(device)
    backbone[3].eval()
    features = PatchFeatures(backbone, patch_size=S)
    made = features(photo(), torch.zeros(0, 4))
    assert made.shape == (0, *features.shape) and made.device.type == device.type
    assert backbone.training and not backbone[3].training and not made.requires_grad


def test_half_precision_is_near(device: torch.device) -> None:
    backbone, boxes = unpadded().to(device), PatchGrid(scales=(1, 1.6), target=None)((96, 144))
    for method in ("exact", "shared"):
        full, half = (
            PatchFeatures(backbone, method=method, patch_size=S, amp=amp)(photo(), boxes)
            for amp in (False, True)
        )
        assert full.dtype == half.dtype == torch.float32
        assert 0 < (full - half).abs().max() < 0.05 * full.abs().max()


def test_trailing_poolings_are_split_off_a_sequential_alone() -> None:
    backbone, pool = split_pooling(AlexNet(channels=(4, 4, 4, 4, 4), hidden=4).features)
    assert (len(backbone), [type(module) for module in pool]) == (12, [nn.MaxPool2d])
    other = AlexNet(channels=(4, 4, 4, 4, 4), hidden=4)
    assert split_pooling(other)[0] is other


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"method": "fast"}, "method must be"), ({"pyramid_scales": 0}, "pyramid_scales must be"), ({"pyramid_scales": ()}, "pyramid_scales must be"),
     ({"batch_size": 0}, "batch_size must be"), ({"most_pixels": 10}, "most_pixels must be")],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        PatchFeatures(unpadded(), patch_size=S, **wrong)
