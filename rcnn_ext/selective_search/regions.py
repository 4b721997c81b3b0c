"""The regions that a search finds."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Regions:
    """Regions of an image, in the order of a search.

    Attributes:
        boxes: [N, 4] int32 (x1, y1, x2, y2) in image pixels: the first and the last column and row
            of a region. Both belong to it, as in Pascal VOC, so that a box of one pixel has
            x1 == x2. This is the package's ``rect`` with x2 = x + w. RoI operators and COCO mean
            :meth:`enclosing_boxes`.
        sizes: [N] int64 pixels of a region; where a backend does not tell, pixels of its box.
    """

    boxes: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, index: np.ndarray) -> Regions:
        """Return the regions that an index or a mask selects."""
        return Regions(self.boxes[index], self.sizes[index])

    def enclosing_boxes(self) -> np.ndarray:
        """Return [N, 4] float32 boxes around the pixels of regions, in image pixels.

        Their corners lie on the outer borders of the outermost pixels: x2 and y2 are one more than
        in ``boxes``, the whole image is (0, 0, width, height). This is what ``rcnn_ext.ops``, the
        models and COCO's annotations mean by a box.
        """
        return (self.boxes + np.array([0, 0, 1, 1], dtype=np.int32)).astype(np.float32)

    @staticmethod
    def whole_image(height: int, width: int) -> Regions:
        """Return one region that is the image, of ``height`` x ``width`` pixels."""
        boxes = np.array([[0, 0, width - 1, height - 1]], dtype=np.int32)
        return Regions(boxes, np.array([height * width], dtype=np.int64))


def unique_boxes(boxes: np.ndarray) -> np.ndarray:
    """Find the first of each set of equal boxes.

    Args:
        boxes: [N, 4].

    Returns:
        Ascending indices.
    """
    _, first = np.unique(boxes, axis=0, return_index=True)
    return np.sort(first)
