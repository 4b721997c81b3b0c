"""Detection data: readers of annotation formats, datasets, augmentation, and a made data set."""

from .annotations import AnnotationSet, ClassList, ImageRecord
from .coco import find_annotations, find_images_folder, read_coco
from .dataset import (
    DetectionDataset,
    TrainingStream,
    collate,
    evaluation_loader,
    training_loader,
)
from .images import find_images, image_size, load_image
from .synthetic import SyntheticConfig, make_synthetic
from .transforms import AugmentConfig, build_augmentation

__all__ = [
    "AnnotationSet",
    "AugmentConfig",
    "ClassList",
    "DetectionDataset",
    "ImageRecord",
    "SyntheticConfig",
    "TrainingStream",
    "build_augmentation",
    "collate",
    "evaluation_loader",
    "find_annotations",
    "find_images",
    "find_images_folder",
    "image_size",
    "load_image",
    "make_synthetic",
    "read_coco",
    "training_loader",
]
