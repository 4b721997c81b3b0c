"""Reading pictures from disk: one reader and one rule of orientation for the whole package."""

from rcnn_ext.data.images.decoding import naming_errors
from rcnn_ext.data.images.finding import (
    IMAGE_SUFFIXES,
    PictureList,
    ReadList,
    find_images,
    is_picture,
    list_images,
    numeric_ids,
    pictures_below,
)
from rcnn_ext.data.images.header import Header, read_header
from rcnn_ext.data.images.reader import ImageReader
from rcnn_ext.data.images.reading import (
    boxes_as_annotated,
    fitting_size,
    image_size,
    image_suffix,
    load_array,
    load_image,
    load_mask,
    load_tensor,
    upright_rgb,
)
from rcnn_ext.data.images.values import picture_to_rgb

__all__ = [
    "IMAGE_SUFFIXES",
    "Header",
    "ImageReader",
    "PictureList",
    "ReadList",
    "boxes_as_annotated",
    "find_images",
    "fitting_size",
    "image_size",
    "image_suffix",
    "is_picture",
    "list_images",
    "load_array",
    "load_image",
    "load_mask",
    "load_tensor",
    "naming_errors",
    "numeric_ids",
    "picture_to_rgb",
    "pictures_below",
    "read_header",
    "upright_rgb",
]
