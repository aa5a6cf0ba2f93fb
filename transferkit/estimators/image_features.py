"""Whole images to features by a backbone, as a scikit-learn transformer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from transferkit.backbones import features_of, find_preprocessing
from transferkit.datasets._photo import FloatRange, as_pixels
from transferkit.errors import ArgumentError, require
from transferkit.features import PatchFeatures, split_pooling
from transferkit.features.patch_features import Method
from transferkit.features.shared import Forward, device_of
from transferkit.heads import spatial_pooling
from transferkit.preprocessing import Preprocessing
from transferkit.sampler import PatchGrid, crop_and_resize


def images_of(X: Any, float_range: FloatRange | None = None) -> Iterator[Tensor]:
    """Yield each image of a list, an array (N, ...) or a data set as (3, H, W) uint8.

    Raises:
        ArgumentError: It has no length, or is a table.
    """
    if isinstance(X, str | bytes) or not (hasattr(X, "__len__") and hasattr(X, "__getitem__")):
        raise ArgumentError(f"X must be a sequence of images, got {type(X).__name__}")
    table = isinstance(X, np.ndarray | Tensor) and X.ndim < 3 and X.dtype is not np.dtype(object)
    if table:
        raise ArgumentError(f"X must be a sequence of images, got an array of shape {tuple(X.shape)}")
    images = (X[index] for index in range(len(X)))
    return (as_pixels(getattr(image, "image", image), float_range) for image in images)


class ImageFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Resize each image to the network's input size, whatever its shape, and compute the backbone's features.

    The backbone is frozen and runs in evaluation mode: ``fit`` learns nothing from the images. Cloning, as a grid
    search does, copies a backbone that is given as a module, and builds one that is given as a function. A search is
    faster without either: transform once, and search over the features.

    Args:
        backbone: A module (B, 3, H, W) -> maps (B, C, h, w), tokens (B, T, D) or features (B, D), such as
            :func:`~transferkit.backbones.truncate` returns; or a function without arguments that builds one.
        pooling: What makes a vector of a map: a name of :func:`~transferkit.heads.spatial_pooling`, or a module.
            Tokens are averaged.
        image_size: Side in pixels, or ``(height, width)``; what the backbone was trained at unless given, else 224.
        preprocessing: Preprocessing that the backbone expects; found by
            :func:`~transferkit.backbones.find_preprocessing` unless given.
        patches: Instead of the whole image, the patches of a :class:`~transferkit.sampler.PatchGrid`, each resized
            to the network's size; an image's features are the average of theirs.
        method: How the patches' features are computed, of :class:`~transferkit.features.PatchFeatures`:
            ``"exact"``, ``"shared"``, or ``"auto"`` for shared where the backbone can be.
        flips: Whether features are averaged over the image and its mirror image, at twice the time.
        batch_size: Images, or patches, at a time.
        float_range: The values that floating images span, ``(0, 1)`` or ``(0, 255)``; needed where there are such.
        amp: Whether the backbone computes in half precision; ``None`` for on with cuda and off elsewhere.
        device: To compute on; where the backbone is unless given.

    Attributes:
        backbone_, pooling_: The modules.
        preprocessing_: What is done to pixels.
        preprocessing_origin_: Where that was found; read it once for a backbone that is new to you.
        image_size_: (height, width).

    Example:
        >>> from transferkit.alexnet import AlexNet
        >>> backbone = AlexNet(channels=(4, 4, 4, 4, 8), hidden=8).features
        >>> images = [np.zeros((50, 80, 3), np.uint8), np.full((90, 60, 3), 255, np.uint8)]
        >>> ImageFeatures(backbone, image_size=64).fit_transform(images).shape
        (2, 8)
    """

    def __init__(
        self,
        backbone: nn.Module | Callable[[], nn.Module],
        *,
        pooling: str | nn.Module = "average",
        image_size: int | tuple[int, int] | None = None,
        preprocessing: Preprocessing | None = None,
        patches: PatchGrid | None = None,
        method: Method = "auto",
        flips: bool = False,
        batch_size: int = 32,
        float_range: FloatRange | None = None,
        amp: bool | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.backbone = backbone
        self.pooling = pooling
        self.image_size = image_size
        self.preprocessing = preprocessing
        self.patches = patches
        self.method = method
        self.flips = flips
        self.batch_size = batch_size
        self.float_range = float_range
        self.amp = amp
        self.device = device

    def fit(self, X: Any = None, y: Any = None) -> ImageFeatures:
        """Get the backbone ready; X and y are not looked at.

        Raises:
            ArgumentError: The backbone is no module and builds none, or returns no features for an image.
        """
        require(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        backbone = self.backbone if isinstance(self.backbone, nn.Module) else self.backbone()
        if not isinstance(backbone, nn.Module):
            raise ArgumentError(f"backbone must be a module or build one, got {type(backbone).__name__}")
        found = find_preprocessing(backbone)
        self.preprocessing_ = self.preprocessing or found.preprocessing
        self.preprocessing_origin_ = "given" if self.preprocessing else found.origin
        size = self.image_size or found.image_size or 224
        self.image_size_: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.backbone_ = backbone if self.device is None else backbone.to(self.device)
        pooling = spatial_pooling(self.pooling) if isinstance(self.pooling, str) else self.pooling
        self.pooling_ = ToVector(pooling).to(device_of(backbone))
        self._of_patches = None if self.patches is None else self._patch_features()
        with self._whole().evaluating():
            self._n_features_out = self._whole().features(torch.zeros(1, 3, *self.image_size_)).shape[1]
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Return the images' features.

        Args:
            X: A sequence of N images, of any sizes: paths, PIL images, arrays (H, W) or (H, W, 3), tensors (H, W) or
                (3, H, W); an array (N, ...) of them; or a data set whose items have an ``image``.

        Returns:
            (N, D) float32.
        """
        check_is_fitted(self)
        rows = [np.zeros((0, self._n_features_out), np.float32)]
        rows += [
            self._features(images).numpy() for images in chunks(images_of(X, self.float_range), self.batch_size)
        ]
        return np.concatenate(rows)

    def _features(self, images: list[Tensor]) -> Tensor:
        """Return (B, D) float32 on the cpu."""
        find = self._of_whole_images if self._of_patches is None else self._averaged_over_patches
        features = find(images)
        if self.flips:
            features = (features + find([image.flip(-1) for image in images])) / 2
        return features.cpu()

    def _of_whole_images(self, images: list[Tensor]) -> Tensor:
        whole = [torch.tensor([[0.0, 0.0, image.shape[2], image.shape[1]]]) for image in images]
        sized = map(crop_and_resize, images, whole, repeat(self.image_size_))
        with self._whole().evaluating():
            return self._whole().features(torch.cat(list(sized)))

    def _averaged_over_patches(self, images: list[Tensor]) -> Tensor:
        assert self._of_patches is not None and self.patches is not None
        boxes = [self.patches((image.shape[1], image.shape[2])) for image in images]
        features = map(self._of_patches, images, boxes)  # each (P, D)
        return torch.stack([each.mean(dim=0) for each in features])

    def _whole(self) -> Forward:
        return Forward(self.backbone_, self.pooling_, self.preprocessing_, self.amp, device_of(self.backbone_))

    def _patch_features(self) -> PatchFeatures:
        height, width = self.image_size_
        require(height == width, "image_size", "square with patches", self.image_size_)
        backbone, tail = split_pooling(self.backbone_)
        return PatchFeatures(
            backbone,
            pool=nn.Sequential(tail, self.pooling_),
            method=self.method,
            preprocessing=self.preprocessing_,
            patch_size=height,
            batch_size=self.batch_size,
            amp=self.amp,
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        tags.requires_fit = True
        return tags


class ToVector(nn.Module):
    """Make features (B, D) of whatever a backbone returns: maps are pooled, tokens averaged.

    Args:
        pooling: Maps (B, C, h, w) to (B, D).
    """

    def __init__(self, pooling: nn.Module) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, output: Any) -> Tensor:
        """Return (B, D).

        Raises:
            ArgumentError: It is none of these, or the pooling makes something else of a map.
        """
        features = features_of(output)
        shape = tuple(features.shape)
        if features.ndim == 4:
            features = self.pooling(features)
        elif features.ndim == 3:
            features = features.mean(dim=1)
        if features.ndim != 2:
            raise ArgumentError(
                "backbone must return (B, C, H, W), (B, T, D) or (B, D), and pooling make (B, D) of the first, got "
                f"{shape} and {tuple(features.shape)}"
            )
        return features


def chunks(items: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Yield the items in lists of ``size``; the last may be shorter."""
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk
