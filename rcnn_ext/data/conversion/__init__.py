"""From any format that is read to COCO, VOC, YOLO or CSV."""

from rcnn_ext.data.conversion.convert_data import TARGETS, Conversion, convert

__all__ = ["TARGETS", "Conversion", "convert"]
