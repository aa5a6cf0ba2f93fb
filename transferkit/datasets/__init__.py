"""Data sets of annotated images: Pascal VOC from any VOCdevkit folder, fetched where it is absent."""

from transferkit.datasets.presence import Presence, presence_of
from transferkit.datasets.voc import VOC_CLASSES, VOCDataset, find_class_names

__all__ = ["VOC_CLASSES", "Presence", "VOCDataset", "find_class_names", "presence_of"]
