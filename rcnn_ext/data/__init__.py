"""Detection data: readers of annotation formats, datasets, augmentation, and a made data set.

:func:`open_split` reads any format by the data section of a recipe; the ``read_*`` functions read
one format without a recipe.
"""

from .annotations import AnnotationSet, ClassList, ImageRecord
from .coco import find_annotations, find_images_folder, read_coco
from .config import DataConfig
from .csv_boxes import CsvConfig, read_csv_boxes
from .dataset import (
    DetectionDataset,
    TrainingStream,
    collate,
    evaluation_loader,
    training_loader,
)
from .formats import detect_format, has_split, open_split
from .hub import (
    HubSplit,
    HubStream,
    check_stream,
    copy_split,
    open_stream,
    stream_loader,
    stream_splits,
)
from .images import find_images, image_size, load_image
from .partition import partition
from .pennfudan import read_pennfudan
from .problems import Problem, Report
from .samples import ProposalSource
from .statistics import channel_statistics
from .synthetic import SyntheticConfig, make_synthetic
from .transforms import AugmentConfig, build_augmentation
from .voc import VocConfig, read_voc
from .yolo import read_yolo

__all__ = [
    "AnnotationSet",
    "AugmentConfig",
    "ClassList",
    "CsvConfig",
    "DataConfig",
    "DetectionDataset",
    "HubSplit",
    "HubStream",
    "ImageRecord",
    "Problem",
    "ProposalSource",
    "Report",
    "SyntheticConfig",
    "TrainingStream",
    "VocConfig",
    "build_augmentation",
    "channel_statistics",
    "check_stream",
    "collate",
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
