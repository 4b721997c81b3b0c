"""All formats by name."""

from __future__ import annotations

from rcnn_ext.config.data import FormatName
from rcnn_ext.data.formats import coco, csv_boxes, pennfudan, synthetic, voc, yolo
from rcnn_ext.data.formats.format import Format

# In the order in which a folder is compared with them: the plainest marks come first.
FORMATS: dict[FormatName, Format] = {
    "voc": voc.FORMAT,
    "pennfudan": pennfudan.FORMAT,
    # JSON and XML.
    "coco": coco.FORMAT,
    # Text files, one per image.
    "yolo": yolo.FORMAT,
    # Tables and lists.
    "csv": csv_boxes.FORMAT,
    # Made, not found.
    "synthetic": synthetic.FORMAT,
}
