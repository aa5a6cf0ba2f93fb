"""Data sets of annotated images: Pascal VOC from any folder, downloaded where absent, and scenes made for a demo.

:class:`ImageListDataset`, :class:`CocoDataset` and :class:`TargetDictDataset` read your own data.

To read the code: ``voc`` over ``voc_files``, ``voc_writer``, ``coco``, ``lists``, ``_objects`` (what all ask),
``_photo`` (pixels of any image), ``download``, ``demo``.
"""

from transferkit.annotated import Presence, presence_of
from transferkit.datasets.checking import PhotoCheck, check, split
from transferkit.datasets.coco import CocoDataset
from transferkit.datasets.demo import DEMO_CLASSES, demo_source_digits, write_demo_devkit
from transferkit.datasets.download import fetch_alexnet_weights, fetch_voc
from transferkit.datasets.lists import ImageListDataset, TargetDictDataset
from transferkit.datasets.opening import PhotoFolder, open_photos
from transferkit.datasets.tags import ClassFolderDataset, TableDataset
from transferkit.datasets.voc import VOC_CLASSES, FolderDataset, VOCDataset, find_class_names
from transferkit.datasets.voc_writer import write_voc_images
from transferkit.datasets.yolo import YoloDataset
from transferkit.files import home_folder

__all__ = [
    "DEMO_CLASSES",
    "VOC_CLASSES",
    "ClassFolderDataset",
    "CocoDataset",
    "FolderDataset",
    "ImageListDataset",
    "PhotoCheck",
    "PhotoFolder",
    "Presence",
    "TableDataset",
    "TargetDictDataset",
    "VOCDataset",
    "YoloDataset",
    "check",
    "demo_source_digits",
    "fetch_alexnet_weights",
    "fetch_voc",
    "find_class_names",
    "home_folder",
    "open_photos",
    "presence_of",
    "split",
    "write_demo_devkit",
    "write_voc_images",
]
