"""Augmentation of training images, in the section ``data`` of a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from rcnn_ext.config.values import Float, require


@dataclass
class AugmentConfig:
    """Augmentation of training images. With everything off they stay as they are.

    Attributes:
        horizontal_flip: Probability of mirroring left and right.
        vertical_flip: Probability of mirroring top and bottom.
        color: Brightness, contrast and saturation are scaled by 1 - color to 1 + color, drawn for
            each image; 0 leaves them.
        hue: The hue is turned by up to this part of a full circle, at most 0.5.
        blur: Probability of a Gaussian blur with a deviation of 0.1 to 2 pixels.
        zoom: Smallest and largest factor of an enlargement about the center, drawn for each image;
            the size of the image stays, what is left over is gray. ``[1, 1]`` leaves it.
        shift: The image is moved by up to this part of its sides.
        rotate: Maximum angle, in degrees, by which the image is turned; boxes become those around
            the turned ones.
        shear: Maximum angle, in degrees, by which the image is sheared.
        scale_jitter: Smallest and largest factor of a resize, after which a random part of a larger
            image is seen, or a smaller one lies somewhere on gray; the size of the image stays.
            Unlike ``zoom`` it filters what it shrinks, so it suits factors far below 1.
        mosaic: Probability that an image shares its place with three others, one in each corner.
        copy_paste: Probability that random objects of another image are pasted into an image, cut
            out by their masks, mirrored half of the time, and scaled by 0.5 to 2. The data must
            have outlines or masks, and ``data.masks`` is then on for the training images.
    """

    horizontal_flip: Float = 0.5
    vertical_flip: Float = 0.0
    color: Float = 0.0
    hue: Float = 0.0
    blur: Float = 0.0
    zoom: tuple[Float, Float] = (1.0, 1.0)
    shift: Float = 0.0
    rotate: Float = 0.0
    shear: Float = 0.0
    scale_jitter: tuple[Float, Float] = (1.0, 1.0)
    mosaic: Float = 0.0
    copy_paste: Float = 0.0

    def __post_init__(self) -> None:
        for name in (
            *("horizontal_flip", "vertical_flip", "blur", "mosaic", "copy_paste", "shift"),
        ):
            require(0 <= getattr(self, name) <= 1, name, "from 0 to 1")
        require(self.color >= 0, "color", "0 or more")
        require(0 <= self.hue <= 0.5, "hue", "from 0 to 0.5")
        require(0 <= self.rotate <= 180, "rotate", "from 0 to 180 degrees")
        require(0 <= self.shear < 90, "shear", "from 0 to below 90 degrees")
        for name in ("zoom", "scale_jitter"):
            low, high = getattr(self, name)
            require(0 < low <= high, name, "two numbers above 0, the smaller first")
