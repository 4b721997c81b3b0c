"""Detection data: readers of annotation formats, datasets, augmentation, and a made data set.

:func:`open_split` reads any format by the data section of a recipe; the ``read_*`` functions read
one format without a recipe.
"""

from rcnn_ext import torchvision_compat  # noqa: F401 - before torchvision
from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.annotations import AnnotationSet, ClassList, ImageRecord, PackedImages
from rcnn_ext.data.conversion import Conversion, convert
from rcnn_ext.data.dataset import (
    DetectionDataset,
    TrainingStream,
    collate,
    evaluation_loader,
    training_loader,
)
from rcnn_ext.data.formats.coco import find_annotations, find_images_folder, read_coco
from rcnn_ext.data.formats.csv_boxes import CsvConfig, read_csv_boxes
from rcnn_ext.data.formats.pennfudan import read_pennfudan
from rcnn_ext.data.formats.registry import detect_format, has_split, open_split
from rcnn_ext.data.formats.synthetic import SyntheticConfig, make_synthetic
from rcnn_ext.data.formats.voc import VocConfig, read_voc
from rcnn_ext.data.formats.yolo import read_yolo
from rcnn_ext.data.hub import (
    HubSplit,
    HubStream,
    check_stream,
    copy_split,
    open_stream,
    stream_loader,
    stream_splits,
)
from rcnn_ext.data.images import find_images, image_size, load_image
from rcnn_ext.data.partition import partition
from rcnn_ext.data.problems import Problem, Report
from rcnn_ext.data.samples import ProposalSource
from rcnn_ext.data.segmentation import Segmentation
from rcnn_ext.data.statistics import channel_statistics
from rcnn_ext.data.transforms import AugmentConfig, build_augmentation

__all__ = [
    "AnnotationSet",
    "AugmentConfig",
    "ClassList",
    "Conversion",
    "CsvConfig",
    "DataConfig",
    "DetectionDataset",
    "HubSplit",
    "HubStream",
    "ImageRecord",
    "PackedImages",
    "Problem",
    "ProposalSource",
    "Report",
    "Segmentation",
    "SyntheticConfig",
    "TrainingStream",
    "VocConfig",
    "build_augmentation",
    "channel_statistics",
    "check_stream",
    "collate",
    "convert",
    "copy_split",
    "detect_format",
    "evaluation_loader",
    "find_annotations",
    "find_images",
    "find_images_folder",
    "has_split",
    "image_size",
    "load_image",
    "make_synthetic",
    "open_split",
    "open_stream",
    "partition",
    "read_coco",
    "read_csv_boxes",
    "read_pennfudan",
    "read_voc",
    "read_yolo",
    "stream_loader",
    "stream_splits",
    "training_loader",
]
