"""Reading pictures from disk: one reader and one rule of orientation for the whole package."""

from rcnn_ext.data.images.finding import (
    IMAGE_SUFFIXES,
    find_images,
    is_picture,
    numeric_ids,
    pictures_below,
)
from rcnn_ext.data.images.options import ImageOptions
from rcnn_ext.data.images.orientation import stored_orientation
from rcnn_ext.data.images.reading import image_size, load_array, load_image, load_tensor
from rcnn_ext.data.images.values import picture_to_rgb

__all__ = [
    "IMAGE_SUFFIXES",
    "ImageOptions",
    "find_images",
    "image_size",
    "is_picture",
    "load_array",
    "load_image",
    "load_tensor",
    "numeric_ids",
    "picture_to_rgb",
    "pictures_below",
    "stored_orientation",
]
