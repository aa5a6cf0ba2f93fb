"""Data that needs no download: scenes of handwritten digits on photographs, in Pascal VOC's layout."""

from transferkit.datasets.demo.devkit import DEMO_CLASSES, write_demo_devkit
from transferkit.datasets.demo.source import demo_source_digits

__all__ = ["DEMO_CLASSES", "demo_source_digits", "write_demo_devkit"]
