"""Images in any form become the features of the backbone, and pipelines over images work like any other."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from tests.backbones import lookalikes as models
from transferkit.alexnet import AlexNet
from transferkit.backbones import truncate
from transferkit.errors import ArgumentError, DataError
from transferkit.estimators import HeadClassifier, ImageFeatures, LinearProbe
from transferkit.estimators.image_features import images_of
from transferkit.features import PatchFeatures
from transferkit.preprocessing import IMAGENET, NEON_IMAGENET
from transferkit.sampler import PatchGrid, crop_and_resize


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return AlexNet(channels=(4, 4, 4, 4, 8), hidden=8).features


def photos(count: int = 6) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (40 + 7 * i, 60 - 3 * i, 3), dtype=np.uint8) for i in range(count)]


def test_they_are_the_pooled_maps_of_the_resized_image() -> None:
    images, net = photos(), backbone().eval()
    features = ImageFeatures(net, image_size=(64, 96)).fit_transform(images)
    assert features.shape == (6, 8) and features.dtype == np.float32
    for image, row in zip(images, features, strict=True):
        resized = np.array(Image.fromarray(image).resize((96, 64), Image.Resampling.BILINEAR))
        pixels = torch.from_numpy(resized).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = net(IMAGENET(pixels)).mean(dim=(2, 3))[0]
        np.testing.assert_allclose(row, expected, atol=2e-2)  # PIL rounds between its two passes


def test_every_form_of_an_image_is_the_same_image(tmp_path: Path) -> None:
    array = photos(1)[0]
    path = tmp_path / "photo.png"
    Image.fromarray(array).save(path)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    forms = [
        array,
        tensor,
        Image.fromarray(array),
        path,
        str(path),
        tensor / 255,
        SimpleNamespace(image=tensor),
    ]
    assert all(torch.equal(image, tensor) for image in images_of(forms, float_range=(0, 1)))
    features = ImageFeatures(backbone(), image_size=64, float_range=(0, 1)).fit_transform(forms)
    np.testing.assert_allclose(features, features[:1].repeat(len(forms), axis=0), atol=0.02)
    stacked = ImageFeatures(backbone(), image_size=64).fit_transform(np.stack([array, array]))
    np.testing.assert_allclose(stacked, features[:2], atol=1e-6)


def test_neither_batches_nor_clones_nor_pickles_change_them() -> None:
    images = photos()
    one = ImageFeatures(backbone(), image_size=64, batch_size=1)
    expected = one.fit_transform(images)
    for other in (clone(one).set_params(batch_size=4), clone(one), pickle.loads(pickle.dumps(one))):
        np.testing.assert_allclose(other.fit(images).transform(images), expected, atol=1e-6)
    built = ImageFeatures(backbone, image_size=64)
    np.testing.assert_allclose(built.fit_transform(images), expected, atol=1e-6)
    assert clone(built).backbone is backbone
    assert one.fit().transform([]).shape == (0, 8)


def test_flips_are_averaged() -> None:
    images = photos()
    plain = ImageFeatures(backbone(), image_size=64).fit()
    flipped = [image[:, ::-1] for image in images]
    both = clone(plain).set_params(flips=True).fit_transform(images)
    np.testing.assert_allclose(both, (plain.transform(images) + plain.transform(flipped)) / 2, atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "width"), [("average", 8), ("gem", 8), ("pyramid", 112), (nn.Flatten(), 8)]
)
def test_any_pooling(pooling: str | nn.Module, width: int) -> None:
    features = ImageFeatures(backbone(), image_size=64, pooling=pooling).fit_transform(photos())
    assert features.shape == (6, width)
    assert len(ImageFeatures(backbone(), image_size=64).fit().get_feature_names_out()) == 8


def test_the_backbones_own_size_and_preprocessing_are_taken_and_named() -> None:
    model = models.TimmResNet()
    features = ImageFeatures(truncate(model, before="fc")).fit()
    assert features.image_size_ == (64, 96)
    assert features.preprocessing_.mean == (0.5, 0.5, 0.5)
    assert features.preprocessing_origin_ == "its pretrained_cfg"
    given = ImageFeatures(backbone(), image_size=64, preprocessing=NEON_IMAGENET).fit()
    assert (given.preprocessing_, given.preprocessing_origin_) == (NEON_IMAGENET, "given")
    assert "so ImageNet's are assumed" in ImageFeatures(backbone(), image_size=64).fit().preprocessing_origin_


def test_patches_are_averaged() -> None:
    images, grid = photos(3), PatchGrid(scales=(1, 2))
    exact = ImageFeatures(backbone(), image_size=64, patches=grid, method="exact").fit_transform(images)
    shared = ImageFeatures(backbone(), image_size=64, patches=grid, method="shared").fit_transform(images)
    by_boxes = PatchFeatures(backbone(), method="shared", patch_size=64)
    for image, row, shared_row in zip(images, exact, shared, strict=True):
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        boxes = grid(image.shape[:2])
        crops = list(crop_and_resize(tensor, boxes, 64))
        one_by_one = ImageFeatures(backbone(), image_size=64).fit_transform(crops)
        np.testing.assert_allclose(row, one_by_one.mean(axis=0), rtol=1e-4)
        np.testing.assert_allclose(shared_row, by_boxes(tensor, boxes).flatten(1).mean(dim=0), rtol=1e-4)


def test_models_that_return_tokens_or_outputs() -> None:
    images = photos()
    for model in (models.HuggingFaceEncoder(pooler=True), models.HuggingFaceEncoder(pooler=False)):
        assert ImageFeatures(model, image_size=32).fit_transform(images).shape == (6, 8)


def test_the_backbone_is_frozen_and_in_evaluation_mode() -> None:
    net = models.MobileNetV2().features.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    ImageFeatures(net, image_size=64).fit_transform(photos())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_bfloat16_and_other_devices_are_close(device: torch.device) -> None:
    images = photos()
    plain = ImageFeatures(backbone(), image_size=64).fit_transform(images)
    other = ImageFeatures(backbone(), image_size=64, amp=True, device=device).fit_transform(images)
    assert np.abs(other - plain).max() <= 0.05 * np.abs(plain).max()


def test_a_pipeline_over_images_fits_scores_and_searches() -> None:
    random = np.random.default_rng(0)
    dark = [random.integers(0, 100, (40, 50, 3), dtype=np.uint8) for _ in range(12)]
    light = [random.integers(150, 256, (50, 40, 3), dtype=np.uint8) for _ in range(12)]
    images, y = np.array([*dark, *light], dtype=object), np.repeat(["dark", "light"], 12)
    pipeline = make_pipeline(ImageFeatures(backbone(), image_size=64), LinearProbe(C=1))
    assert pipeline.fit(images, y).score(images, y) == 1
    both = np.stack([y == "dark", y == "light"], axis=1).astype(int)
    assert pipeline.fit(images, both).decision_function(images).shape == (24, 2)
    steps = Pipeline(
        [("features", ImageFeatures(backbone, image_size=64)), ("head", HeadClassifier(random_state=0))]
    )
    grid = {"features__pooling": ["average", "max"], "head__learning_rate": [1e-5, 0.03]}
    search = GridSearchCV(steps, grid, cv=2).fit(images, y)
    assert search.best_params_["head__learning_rate"] == 0.03 and search.score(images, y) == 1


def test_scikit_learns_own_checks_that_apply() -> None:
    # Its checks make tables of numbers; of an estimator that takes images they only look at its tags and its clone.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        results = check_estimator(ImageFeatures(backbone), on_skip=None)
    assert {result["status"] for result in results} == {"passed"}
    with pytest.raises(NotFittedError):
        ImageFeatures(backbone).transform(photos())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ImageFeatures(backbone(), image_size=64).fit().transform(np.zeros((4, 5))),
            r"an array of shape \(4, 5\)",
        ),
        (
            lambda: ImageFeatures(backbone(), image_size=64).fit().transform("photo.jpg"),
            "a sequence of images, got str",
        ),
        (lambda: ImageFeatures(backbone(), image_size=64).fit().transform([3]), "a tensor, got int"),
        (
            lambda: ImageFeatures(backbone(), image_size=64).fit().transform(np.zeros((1, 2, 4, 5), np.uint8)),
            r"got \(2, 4, 5\)",
        ),
        (
            lambda: ImageFeatures(backbone(), image_size=(64, 32), patches=PatchGrid()).fit(),
            "square with patches, got",
        ),
        (
            lambda: ImageFeatures(backbone(), image_size=64, pooling=nn.Identity()).fit(),
            r"got \(2, 8, 1, 1\) and",
        ),
        (lambda: ImageFeatures(lambda: 3).fit(), "backbone must be a module or build one, got int"),
        (lambda: ImageFeatures(backbone(), batch_size=0).fit(), "batch_size must be at least 1, got 0"),
        (lambda: ImageFeatures(backbone(), pooling="mean").fit(), "pooling must be one of average"),
    ],
)
def test_bad_arguments_are_named(call, message: str) -> None:
    with pytest.raises((ArgumentError, DataError), match=message):
        call()
