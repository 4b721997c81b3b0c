"""Numbers of a split: classes, sizes and shapes of pictures and boxes, in fixed ranges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rcnn_ext.data.annotations import AnnotationSet

# Sides of squares of COCO's areas: small below 32^2, large from 96^2 square pixels on.
SMALL, LARGE = 32, 96

_PICTURE_SIDES = (64, 128, 256, 384, 512, 640, 768, 1024, 1280, 1600, 2048, 3072, 4096, 8192)
_BOX_SIDES = (4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_RATIOS = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
_COUNTS = (1, 2, 3, 4, 5, 6, 11, 21, 51, 101, 501)


@dataclass(frozen=True)
class Histogram:
    """Counts in ranges.

    Attributes:
        title: What is counted.
        labels: A name for each range.
        counts: How many are in each.
    """

    title: str
    labels: tuple[str, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class SplitMeasures:
    """The numbers of a split.

    Attributes:
        name: ``train``, ``val`` or ``test``.
        num_images: Number of images.
        num_objects: Number of objects, crowds included.
        num_crowds: Objects that are crowds.
        num_empty: Images without objects.
        objects_of_class: int64 [K], objects of each class.
        images_of_class: int64 [K], images with objects of each class.
        small: Objects below 32^2 square pixels, by COCO's rule.
        medium: Objects from 32^2 to below 96^2.
        large: Objects from 96^2 on.
        median_size: Median width and height of the images, in pixels.
        histograms: Sizes and shapes.
    """

    name: str
    num_images: int
    num_objects: int
    num_crowds: int
    num_empty: int
    objects_of_class: np.ndarray
    images_of_class: np.ndarray
    small: int
    medium: int
    large: int
    median_size: tuple[int, int]
    histograms: tuple[Histogram, ...]

    @property
    def per_image(self) -> float:
        """Objects per image."""
        return self.num_objects / max(1, self.num_images)

    def short(self) -> str:
        """Return one line."""
        width, height = self.median_size
        text = f"median picture {width}x{height}"
        if not self.num_objects:
            return text
        parts = (("small", self.small), ("medium", self.medium), ("large", self.large))
        shares = ", ".join(f"{count / self.num_objects:.0%} {name}" for name, count in parts)
        return f"{text}, {self.per_image:.1f} boxes per image: {shares} (by COCO's areas)"


def measure(name: str, annotations: AnnotationSet) -> SplitMeasures:
    """Return the numbers of a split.

    Args:
        name: Its name.
        annotations: Its images; one or more.
    """
    images = annotations.images
    classes = len(annotations.classes)
    sizes, counts = images.sizes.astype(np.float64), images.counts
    sides = (images.boxes[:, 2:] - images.boxes[:, :2]).astype(np.float64)
    pairs = np.unique(images.object_images() * (classes + 1) + images.labels)
    small = int((images.areas < SMALL**2).sum())
    large = int((images.areas >= LARGE**2).sum())
    objects = len(images.boxes)
    histograms = [
        _histogram("Width of pictures, pixels", sizes[:, 0], _PICTURE_SIDES),
        _histogram("Height of pictures, pixels", sizes[:, 1], _PICTURE_SIDES),
        _histogram("Height to width of pictures", sizes[:, 1] / sizes[:, 0], _RATIOS),
        _histogram("Boxes per picture", counts, _COUNTS, whole=True),
    ]
    if objects:
        areas = Histogram(
            "Areas by COCO's rule",
            (f"small, below {SMALL}²", "medium", f"large, from {LARGE}²"),
            (small, objects - small - large, large),
        )
        histograms += [
            areas,
            _histogram("Width of boxes, pixels", sides[:, 0], _BOX_SIDES),
            _histogram("Height of boxes, pixels", sides[:, 1], _BOX_SIDES),
            _histogram("Height to width of boxes", sides[:, 1] / sides[:, 0], _RATIOS),
        ]
    median = np.median(sizes, axis=0).round().astype(int).tolist()
    return SplitMeasures(
        name=name,
        num_images=len(images),
        num_objects=objects,
        num_crowds=int(images.crowd.sum()),
        num_empty=int((counts == 0).sum()),
        objects_of_class=np.bincount(images.labels, minlength=classes + 1)[1:],
        images_of_class=np.bincount(pairs % (classes + 1), minlength=classes + 1)[1:],
        small=small,
        medium=objects - small - large,
        large=large,
        median_size=(median[0], median[1]),
        histograms=tuple(histograms),
    )


def _histogram(
    title: str, values: np.ndarray, edges: tuple[float, ...], *, whole: bool = False
) -> Histogram:
    """Count values in ranges from edge to edge; empty ranges at both ends are left out."""
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    labels = [f"below {edges[0]:g}"]
    for low, high in zip(edges, edges[1:], strict=False):
        single = whole and high - low == 1
        labels.append(f"{low:g}" if single else f"{low:g} to {high - 1 if whole else high:g}")
    labels.append(f"{edges[-1]:g} or more")
    if whole:
        labels[0] = "0"
    used = np.flatnonzero(counts)
    first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
    return Histogram(title, tuple(labels[first:last]), tuple(counts[first:last].tolist()))
