"""The data section of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rcnn_ext.data.csv_boxes import CsvConfig
from rcnn_ext.data.synthetic import SyntheticConfig
from rcnn_ext.data.transforms import AugmentConfig
from rcnn_ext.data.voc import VocConfig

FormatName = Literal["coco", "voc", "pennfudan", "csv", "yolo", "hf", "synthetic"]


@dataclass
class HubConfig:
    """Which data set of the Hugging Face Hub to stream, and what its columns are called.

    Attributes:
        path: Its name on the Hub (``owner/name``), or a local folder in the same form; null takes
            what stands for the data folder, which may be either.
        name: Its configuration, where it has several.
        revision: Branch, tag or commit; null takes the newest.
        train_split: What it calls the training split.
        val_split: What it calls the validation split; ``validation`` finds ``val`` and ``valid``
            too.
        test_split: What it calls the test split.
        image: Column with the picture.
        image_id: Column with the image's number; images without one are numbered.
        objects: Column with the objects of an image.
        box: Entry of ``objects`` with the boxes.
        label: Entry of ``objects`` with the classes, as numbers or names.
        box_format: What the four numbers of a box are: ``xywh`` (COCO's) or ``xyxy``, in pixels.
        shuffle_buffer: Images that are kept to draw the next from. More is a better shuffle and
            more memory.
        streaming: Whether to read while training; false downloads all of it first.
        train_images: How many training images there are, by which logs count epochs; null takes
            what the data say, and counts none where they do not.
        resume: How a resumed run finds its place. ``exact`` reads over all that the run has seen,
            without decoding it, and then goes on as if never stopped: the whole of it is
            transferred once more. ``reshuffle`` begins a new random order at once.
    """

    path: str | None = None
    name: str | None = None
    revision: str | None = None
    train_split: str = "train"
    val_split: str = "validation"
    test_split: str = "test"
    image: str = "image"
    image_id: str = "image_id"
    objects: str = "objects"
    box: str = "bbox"
    label: str = "category"
    box_format: Literal["xywh", "xyxy"] = "xywh"
    shuffle_buffer: int = 1000
    streaming: bool = True
    train_images: int | None = None
    resume: Literal["exact", "reshuffle"] = "exact"

    def __post_init__(self) -> None:
        _require(self.shuffle_buffer >= 1, "shuffle_buffer", "at least 1")
        _require(
            self.train_images is None or self.train_images >= 1,
            "train_images",
            "null or at least 1",
        )


@dataclass
class DataConfig:
    """Where samples come from. Paths may be relative to the data folder.

    Attributes:
        format: ``coco``: COCO annotation files; ``voc``: a VOC devkit; ``pennfudan``: images with
            instance masks; ``csv``: a table of boxes; ``yolo``: text files; ``hf``: streamed from
            the Hugging Face Hub; ``synthetic``: made shapes, written to the data folder when it is
            empty.
        train_annotations: What has the training annotations: the annotation file (coco, csv), the
            image set, such as ``trainval`` (voc), or the folder or list of images (yolo); null
            looks for it.
        train_images: Folder of the training images (coco, csv); null looks for it.
        val_annotations: The same for validation.
        val_images: The same for validation.
        test_annotations: The same for the test.
        test_images: The same for the test.
        classes: Names of the classes to learn; null means all of the training data.
        other_classes: ``leave_out``: objects of classes that are not in ``classes`` are no matter;
            ``error``: they are a problem.
        val_fraction: Part of the training images that is set aside for validation, where the data
            have no split of their own for it.
        test_fraction: The same for the test.
        stratify: Whether such splits keep the shares of the classes.
        split_seed: Seed of such splits.
        max_train_images: Only the first so many training images are used, to see whether a model
            learns at all; null means all.
        objects: ``many``: images have any number of objects; ``one``: each must have exactly one,
            and others are a problem; ``largest``: all but the largest object of an image are left
            out, and so are images without any.
        keep_difficult: Whether objects marked as difficult are trained on.
        on_error: ``stop``: broken files stop the run; ``skip``: they are left out.
        measure_mean_std: Whether mean and standard deviation of each channel are computed from the
            training images before the first step, in place of those of ImageNet.
        batch_size: Images in a step, those of all processes together: a recipe means the same on
            one GPU and on eight.
        workers: Processes that read images; 0 reads them in the training process.
        keep_empty: Whether images without objects are trained on, as background.
        augment: How training images are varied.
        csv: How CSV files are read.
        voc: How VOC devkits are read.
        hf: Which data set of the Hub is read, and how.
        synthetic: What is made when ``format`` is ``synthetic``.
    """

    format: FormatName = "coco"
    train_annotations: str | None = None
    train_images: str | None = None
    val_annotations: str | None = None
    val_images: str | None = None
    test_annotations: str | None = None
    test_images: str | None = None
    classes: list[str] | None = None
    other_classes: Literal["leave_out", "error"] = "leave_out"
    val_fraction: float = 0.0
    test_fraction: float = 0.0
    stratify: bool = True
    split_seed: int = 0
    max_train_images: int | None = None
    objects: Literal["many", "one", "largest"] = "many"
    keep_difficult: bool = False
    on_error: Literal["stop", "skip"] = "stop"
    measure_mean_std: bool = False
    batch_size: int = 2
    workers: int = 2
    keep_empty: bool = True
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    csv: CsvConfig = field(default_factory=CsvConfig)
    voc: VocConfig = field(default_factory=VocConfig)
    hf: HubConfig = field(default_factory=HubConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "batch_size", "at least 1")
        _require(self.workers >= 0, "workers", "0 or more")
        _require(self.split_seed >= 0, "split_seed", "0 or more")
        _require(
            self.max_train_images is None or self.max_train_images >= 1,
            "max_train_images",
            "null or at least 1",
        )
        _require(self.val_fraction >= 0, "val_fraction", "0 or more")
        _require(self.test_fraction >= 0, "test_fraction", "0 or more")
        together = self.val_fraction + self.test_fraction
        _require(together < 1, "val_fraction", "less than 1 together with test_fraction")
        if self.classes is not None:
            distinct = len(set(self.classes)) == len(self.classes)
            _require(bool(self.classes) and distinct, "classes", "null or a list of distinct names")


def _require(fulfilled: bool, key: str, rule: str) -> None:
    if not fulfilled:
        raise ValueError(f"{key} must be {rule}")
