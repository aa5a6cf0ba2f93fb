"""What a network wants done to pixels, as the network itself or its weights say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transferkit.errors import ArgumentError
from transferkit.preprocessing import EFFICIENTNET_LITE, IMAGENET, Preprocessing


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
    """A model that carries a :class:`Preprocessing` as its attribute."""
    own = getattr(source, "preprocessing", None)
    return FoundPreprocessing(own, None, "its preprocessing") if isinstance(own, Preprocessing) else None


def _configured(source: Any) -> FoundPreprocessing | None:
    """Models of timm and Hugging Face name the place; a processor, a preset or a dict is the place."""
    places = ("pretrained_cfg", "default_cfg", "image_processor", "preprocessor_config", "config")
    for place in places:
        found = _settings(getattr(source, place, None), f"its {place}")
        if found is not None:
            return found
    return _settings(source, "its own mean and std")


def _transforms(source: Any) -> FoundPreprocessing | None:
    """Weights of torchvision build their transforms, and a ``Compose`` holds a list of them."""
    transforms = getattr(source, "transforms", None)
    if callable(transforms):
        return _settings(transforms(), f"the transforms of {source}")
    steps = list(transforms) if isinstance(transforms, Sequence) else []
    found = (_settings(step, f"its {type(step).__name__}") for step in steps)
    return next((each for each in found if each is not None), None)


def _known_package(source: Any) -> FoundPreprocessing | None:
    """Packages whose models do not say, and whose weights are known to want something else than ImageNet's."""
    package = type(source).__module__.partition(".")[0]
    if package != "efficientnet_lite_pytorch":
        return None
    return FoundPreprocessing(EFFICIENTNET_LITE, _pair(source.input_image_size), f"known for {package}")


_PLACES = (_own, _known_package, _configured, _transforms)


def _settings(place: Any, origin: str) -> FoundPreprocessing | None:
    """Read mean and std, by timm's and torchvision's or by Hugging Face's names, from a dict or an object."""

    def value(*names: str) -> Any:
        given = place if isinstance(place, Mapping) else {name: getattr(place, name, None) for name in names}
        return next((given[name] for name in names if given.get(name) is not None), None)

    mean, std = value("mean", "image_mean"), value("std", "image_std")
    if mean is None or std is None or callable(mean):
        return None
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    if not len(mean) == len(std) == 3:
        raise ArgumentError(f"mean and std must be three numbers each, got {mean} and {std} in {origin}")
    scale = 1 / (value("rescale_factor") or 1 / 255)
    size = _pair(value("input_size", "crop_size", "size"))
    return FoundPreprocessing(Preprocessing(mean, std, round(scale, 6)), size, origin)


def _pair(size: Any) -> tuple[int, int] | None:
    """Return (height, width) from any way to say it: 224, (224,), (3, 224, 224), {"shortest_edge": 224}."""
    if isinstance(size, Mapping) or hasattr(size, "keys"):
        edges = (size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge")))
        return (int(edges[0]), int(edges[1])) if None not in edges else None
    numbers = [size] if isinstance(size, int) else list(size or [])
    return (int(numbers[-2:][0]), int(numbers[-1])) if numbers else None


def _unwrapped(source: Any) -> Any:
    """Return the model inside what compiles it, spreads it over devices, or cuts it off."""
    for wrapper in ("_orig_mod", "module", "whole"):
        inner = vars(source).get(wrapper) if hasattr(source, "__dict__") else None
        inner = inner or getattr(source, "_modules", {}).get(wrapper)
        if inner is not None:
            return _unwrapped(inner)
    return source
