"""Data sets of annotated images: Pascal VOC from any VOCdevkit folder, fetched where it is absent."""

from transferkit.datasets.fetch import fetch_alexnet_weights, fetch_voc
from transferkit.datasets.home import home_folder
from transferkit.datasets.presence import Presence, presence_of
from transferkit.datasets.voc import VOC_CLASSES, VOCDataset, find_class_names

__all__ = [
    "VOC_CLASSES",
    "Presence",
    "VOCDataset",
    "fetch_alexnet_weights",
    "fetch_voc",
    "find_class_names",
    "home_folder",
    "presence_of",
]
