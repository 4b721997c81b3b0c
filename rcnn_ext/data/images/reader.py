"""A reader of pictures with the options of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from rcnn_ext.config.data import DEFAULT_MAX_PIXELS, DataConfig
from rcnn_ext.data.images.decoding import Source
from rcnn_ext.data.images.reading import image_size, load_image, load_tensor

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ImageReader:
    """Reads pictures, all with the same options.

    Attributes:
        channels: Channels of the tensors: 3 is RGB, 1 gray; pictures are converted to these. Of
            other numbers of channels a picture must have as many.
        max_pixels: Maximum number of pixels of a picture that is read.
        max_value: Value of full intensity in pictures with more than 8 bits per channel; None
            finds it file by file, by the rule of :mod:`rcnn_ext.data.images.values`.
    """

    channels: int = 3
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_value: float | None = None

    @classmethod
    def of(cls, config: DataConfig) -> ImageReader:
        """Return the reader with the options of the data section of a recipe."""
        return cls(config.channels, config.max_pixels, config.max_value)

    def load_image(
        self, path: Source, size: tuple[int, int] | None = None, *, name: str | None = None
    ) -> Image.Image:
        """Call :func:`rcnn_ext.data.images.load_image` with the options."""
        return load_image(
            path,
            size,
            name=name,
            channels=self.channels,
            max_pixels=self.max_pixels,
            max_value=self.max_value,
        )

    def load_tensor(
        self, path: Source, size: tuple[int, int] | None = None, *, name: str | None = None
    ) -> torch.Tensor:
        """Call :func:`rcnn_ext.data.images.load_tensor` with the options."""
        return load_tensor(
            path,
            size,
            name=name,
            channels=self.channels,
            max_pixels=self.max_pixels,
            max_value=self.max_value,
        )

    def image_size(self, path: Source, *, name: str | None = None) -> tuple[int, int]:
        """Call :func:`rcnn_ext.data.images.image_size` with the options."""
        return image_size(path, name=name, max_pixels=self.max_pixels)
