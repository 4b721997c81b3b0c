"""Options of reading pictures, whatever the format of their annotations."""

from __future__ import annotations

from dataclasses import dataclass

from rcnn_ext.config.data import DEFAULT_MAX_PIXELS, DataConfig


@dataclass(frozen=True)
class ImageOptions:
    """Options of reading pictures.

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
    def of(cls, config: DataConfig) -> ImageOptions:
        """Return the options that the data section of a recipe holds."""
        return cls(config.channels, config.max_pixels, config.max_value)
