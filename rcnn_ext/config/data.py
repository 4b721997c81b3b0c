"""The section ``data`` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from rcnn_ext.config.augment import AugmentConfig
from rcnn_ext.config.values import DOTTED_KEYS, Bool, Float, Int, require

FormatName = Literal[
    "auto",
    "hf",
    "synthetic",
    "voc",
    "pennfudan",
    # JSON and XML.
    "coco",
    "createml",
    "cvat",
    "datumaro",
    "imagefolder",
    "label_studio",
    "labelme",
    "supervisely",
    "via",
    # Text files, one per image.
    "visdrone",
    "kitti",
    "widerface",
    "yolo",
    # Tables and lists.
    "via_csv",
    "openimages",
    "global_wheat",
    "csv",
]

# Above it Pillow calls a picture a decompression bomb: at 3 bytes per pixel half a gigabyte.
DEFAULT_MAX_PIXELS = 178_956_970
MAX_CHANNELS = 12

# What columns are called where the recipe does not say; the first that a file has.
CSV_COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "image": (
        "filename",
        "file_name",
        "image",
        "image_path",
        "path",
        "file",
        "img",
        "image_id",
        "imageid",
        "image_name",
        "img_name",
        "filepath",
        "file_path",
        "img_path",
        "image_filename",
    ),
    "class": ("class", "label", "class_name", "category", "name", "class_id", "labelname"),
    "split": ("split", "subset", "partition"),
    "box": ("bbox", "box", "boxes", "bounding_box", "bboxes"),
    "x1": ("xmin", "x1", "x_min", "left"),
    "y1": ("ymin", "y1", "y_min", "top"),
    "x2": ("xmax", "x2", "x_max", "right"),
    "y2": ("ymax", "y2", "y_max", "bottom"),
    "x": ("x", "bbox_x"),
    "y": ("y", "bbox_y"),
    "cx": ("cx", "x_center", "xc", "center_x"),
    "cy": ("cy", "y_center", "yc", "center_y"),
    "w": ("w", "width", "bbox_w", "bbox_width"),
    "h": ("h", "height", "bbox_h", "bbox_height"),
}


@dataclass
class CsvConfig:
    """Options for reading a CSV file.

    Attributes:
        columns: Names of the columns by their meaning: ``image``, ``class``, ``split``, and the box
            as ``x1 y1 x2 y2``, ``x y w h`` (corner and sides), ``cx cy w h`` (center and sides), or
            in one column as ``box``. Those left out are found by their usual names, such as
            ``filename`` and ``xmin``.
        box_format: Meaning of the four numbers of a box in one column.
        one_class: Name of the class of all boxes, in place of a column of classes; null: the file
            has such a column, or nothing that could be one, and then it is ``object``.
        normalized: Whether coordinates are parts of the image's sides rather than pixels; null
            tells it from the numbers.
        delimiter: Separator of values; null takes the one of ``, ; tab |`` that divides the first
            line.
        unlisted: What pictures are that lie beside those of the file, and in none of its rows:
            ``leave_out`` counts them in a warning, ``background`` takes them for images without
            objects.
    """

    columns: Annotated[dict[str, str], DOTTED_KEYS] = field(default_factory=dict)
    box_format: Literal["xywh", "xyxy", "cxcywh"] = "xywh"
    one_class: str | None = None
    normalized: Bool | None = None
    delimiter: str | None = None
    unlisted: Literal["leave_out", "background"] = "leave_out"

    def __post_init__(self) -> None:
        unknown = [name for name in self.columns if name not in CSV_COLUMN_NAMES]
        if unknown:
            raise ValueError(
                f"columns has {unknown[0]!r}; what a column can be is {', '.join(CSV_COLUMN_NAMES)}"
            )
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ValueError(f"delimiter must be one character, not {self.delimiter!r}")


@dataclass
class VocConfig:
    """Options for reading VOC annotations.

    Attributes:
        years: Which of several ``VOC<year>`` folders to read; null takes all that have the image
            set, so that 2007 and 2012 side by side give what the literature calls 07+12.
        one_based: Whether coordinates count from 1 and name the last pixel within the box, as in
            VOC itself. Many tools that write this format count from 0: then false.
    """

    years: list[Int] | None = None
    one_based: Bool = True


@dataclass
class YoloConfig:
    """Options for reading YOLO data.

    Attributes:
        description: The YAML file with the splits and the names of the classes; null looks for one,
            whatever it is called.
    """

    description: str | None = None


@dataclass
class HubConfig:
    """A data set of the Hugging Face Hub, and the names of its columns.

    Attributes:
        path: Its name on the Hub (``owner/name``), or a local folder in the same form; null takes
            what stands for the data folder, which may be either.
        name: Its configuration, where it has several.
        revision: Branch, tag or commit; null takes the newest.
        train_split: Its name of the training split.
        val_split: Its name of the validation split; ``validation`` finds ``val`` and ``valid``
            too.
        test_split: Its name of the test split.
        image: Column with the picture.
        image_id: Column with the image's number; images without one are numbered.
        objects: Column with the objects of an image.
        box: Entry of ``objects`` with the boxes.
        label: Entry of ``objects`` with the classes, as numbers or names.
        box_format: Meaning of the four numbers of a box: ``xywh`` (COCO's) or ``xyxy``, in pixels.
        shuffle_buffer: Images that are kept to draw the next from. More is a better shuffle and
            more memory.
        streaming: Whether to read while training; false downloads all of it first.
        train_images: Number of training images, by which logs count epochs; null takes
            what the data say, and counts none where they do not.
        resume: How a resumed run finds its place. ``exact`` reads over all that the run has seen,
            without decoding it, and then continues as if never stopped: the whole of it is
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
    shuffle_buffer: Int = 1000
    streaming: Bool = True
    train_images: Int | None = None
    resume: Literal["exact", "reshuffle"] = "exact"

    def __post_init__(self) -> None:
        require(self.shuffle_buffer >= 1, "shuffle_buffer", "at least 1")
        require(
            self.train_images is None or self.train_images >= 1,
            "train_images",
            "null or at least 1",
        )


@dataclass(frozen=True)
class SyntheticConfig:
    """Options of a synthetic data set; equal ones give equal files.

    Attributes:
        train: Number of training images.
        val: Number of validation images.
        size: Side of the square images, in pixels.
        max_objects: Maximum number of objects in an image; about one image in twenty has none.
        seed: Seed of everything random.
    """

    train: Int = 512
    val: Int = 128
    size: Int = 128
    max_objects: Int = 3
    seed: Int = 0

    def __post_init__(self) -> None:
        limits = {"train": 1, "val": 1, "size": 32, "max_objects": 1, "seed": 0}
        for name, minimum in limits.items():
            require(getattr(self, name) >= minimum, name, f"at least {minimum}")


@dataclass
class DataConfig:
    """The source of the samples. Paths may be relative to the data folder.

    Attributes:
        format: ``auto``: that which the data folder looks like, as ``rcnn-ext check`` says;
            ``coco``: COCO annotation files; ``voc``: VOC's XML files; ``pennfudan``: images with
            instance masks; ``csv``: a table of boxes; ``yolo``: text files; ``hf``: streamed from
            the Hugging Face Hub; ``synthetic``: made shapes, written to the data folder when it is
            empty.
        encoding: Encoding of text files that are not in one of Unicode's, such as ``gbk`` or
            ``cp1252``; null: they are. Files with a byte-order mark are read by that.
        unpack_to: Folder for the content of an archive that stands for the data folder; null: it
            is beside the archive, ``data.zip.unpacked`` for ``data.zip``.
        train_annotations: Source of the training annotations: the annotation file (coco, csv), the
            image set, such as ``trainval``, or the folder of XML files (voc), or the folder or list
            of images (yolo); null looks for it.
        train_images: Folder of the training images (coco, csv); null looks for it.
        val_annotations: Like ``train_annotations``, for validation.
        val_images: Like ``train_images``, for validation.
        test_annotations: Like ``train_annotations``, for the test.
        test_images: Like ``train_images``, for the test.
        classes: Names of the classes to learn; null means all of the training data.
        other_classes: ``leave_out``: objects of classes that are not in ``classes`` are no matter;
            ``error``: they are a problem.
        val_fraction: Part of the training images that is set aside for validation, where the data
            have no split of their own for it.
        test_fraction: Part that is set aside for the test in the same way.
        stratify: Whether such splits keep the shares of the classes.
        split_seed: Seed of such splits.
        max_train_images: Maximum number of training images, of which the first are used, to see
            whether a model learns at all; null means all.
        objects: ``many``: images have any number of objects; ``one``: each must have exactly one,
            and others are a problem; ``largest``: all but the largest object of an image are left
            out, and so are images without any.
        keep_difficult: Whether objects marked as difficult are trained on.
        masks: Whether outlines and masks of objects are kept, where the data have them: those
            of COCO, polygons of other formats, and instance masks.
        allow_outside: Whether pictures outside of the data folder, and of the folders that the
            recipe names, are read, where names with ``..`` or absolute paths lead to such.
        on_error: ``stop``: broken files stop the run; ``skip``: they are left out.
        channels: Channels of the images that the model takes: 3 is RGB and 1 gray, to which
            pictures are converted; of another number, up to 12, each picture must have as many.
        max_pixels: Maximum number of pixels of a picture; larger ones are a problem.
        max_value: Value of full intensity in pictures with more than 8 bits per channel, such as
            4095 for a camera of 12 bits; null finds it for each picture.
        measure_mean_std: Whether mean and standard deviation of each channel are computed from the
            training images before the first step, in place of those of ImageNet.
        batch_size: Images in a step, those of all processes together: a recipe means the same on
            one GPU and on eight.
        workers: Processes that read images; 0 reads them in the training process.
        keep_empty: Whether images without objects are trained on, as background.
        repeat_threshold: Share of the training images, above 0, below which a class is rare: images
            are repeated within an epoch sqrt(threshold / share) times for their rarest class, as
            for LVIS (repeat-factor sampling), 0.001 there; null repeats none.
        augment: Augmentation of the training images.
        csv: Options for reading CSV files.
        voc: Options for reading VOC annotations.
        yolo: Options for reading YOLO data.
        hf: The data set of the Hub, and the names of its columns.
        synthetic: Options of the data set that ``format: synthetic`` makes.
    """

    format: FormatName = "auto"
    unpack_to: str | None = None
    encoding: str | None = None
    train_annotations: str | None = None
    train_images: str | None = None
    val_annotations: str | None = None
    val_images: str | None = None
    test_annotations: str | None = None
    test_images: str | None = None
    classes: list[str] | None = None
    other_classes: Literal["leave_out", "error"] = "leave_out"
    val_fraction: Float = 0.0
    test_fraction: Float = 0.0
    stratify: Bool = True
    split_seed: Int = 0
    max_train_images: Int | None = None
    objects: Literal["many", "one", "largest"] = "many"
    keep_difficult: Bool = False
    masks: Bool = False
    allow_outside: Bool = False
    on_error: Literal["stop", "skip"] = "stop"
    channels: Int = 3
    max_pixels: Int = DEFAULT_MAX_PIXELS
    max_value: Float | None = None
    measure_mean_std: Bool = False
    batch_size: Int = 2
    workers: Int = 2
    keep_empty: Bool = True
    repeat_threshold: Float | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    csv: CsvConfig = field(default_factory=CsvConfig)
    voc: VocConfig = field(default_factory=VocConfig)
    yolo: YoloConfig = field(default_factory=YoloConfig)
    hf: HubConfig = field(default_factory=HubConfig)
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        if self.encoding is not None:
            require(_is_text_encoding(self.encoding), "encoding", "null or a name such as cp1252")
        require(self.batch_size >= 1, "batch_size", "at least 1")
        require(self.workers >= 0, "workers", "0 or more")
        require(1 <= self.channels <= MAX_CHANNELS, "channels", f"from 1 to {MAX_CHANNELS}")
        require(self.max_pixels >= 1, "max_pixels", "at least 1")
        require(self.max_value is None or self.max_value > 0, "max_value", "null or above 0")
        require(
            self.channels == 3 or not (self.augment.color or self.augment.hue),
            "augment.color",
            "0, and augment.hue too, where channels is not 3: they change RGB colors",
        )
        require(
            self.repeat_threshold is None or 0 < self.repeat_threshold <= 1,
            "repeat_threshold",
            "null, or above 0 and at most 1",
        )
        require(self.split_seed >= 0, "split_seed", "0 or more")
        require(
            self.max_train_images is None or self.max_train_images >= 1,
            "max_train_images",
            "null or at least 1",
        )
        require(self.val_fraction >= 0, "val_fraction", "0 or more")
        require(self.test_fraction >= 0, "test_fraction", "0 or more")
        together = self.val_fraction + self.test_fraction
        require(together < 1, "val_fraction", "less than 1 together with test_fraction")
        if self.classes is not None:
            distinct = len(set(self.classes)) == len(self.classes)
            require(bool(self.classes) and distinct, "classes", "null or a list of distinct names")


def _is_text_encoding(name: str) -> bool:
    """Return whether bytes can be text in it, unlike in base64, for instance."""
    try:
        b"a".decode(name)
    except UnicodeDecodeError:
        return True
    except (LookupError, ValueError):
        return False
    return True
