"""Pictures in every form that people have them: files, Pillow images, arrays and tensors."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from rcnn_ext.data.images import ImageReader, upright_rgb
from rcnn_ext.errors import UserError

_RGB = 3
# Resampling leaves values that are this much outside of [0, 1]; values up to 255 are far out.
_RANGE_TOLERANCE = 1e-2


class Picture(Protocol):
    """A picture that was given, which may not be read yet."""

    @property
    def path(self) -> Path | None:
        """Its file, or None."""

    @property
    def name(self) -> Path:
        """Name of the picture in results."""

    def decode(self, channels: int) -> tuple[Tensor, Image.Image | None]:
        """Read the picture for a model.

        Args:
            channels: Number of channels that the model takes.

        Returns:
            [``channels``, H, W], uint8, or floating point in [0, 1]; and the picture, RGB, where it
            was made on the way.

        Raises:
            UserError: It cannot be read, or has other channels.
        """

    def picture(self) -> Image.Image:
        """Return the picture, upright, RGB."""


@dataclass(frozen=True)
class PictureFile:
    """A picture in a file."""

    path: Path
    name: Path
    reader: ImageReader = ImageReader()

    def decode(self, channels: int) -> tuple[Tensor, Image.Image | None]:
        """Read the file, upright."""
        return _decode(self.reader, self.path, channels)

    def picture(self) -> Image.Image:
        """Read the file, upright, as RGB."""
        return self.reader.load_image(self.path)


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """The content of a picture file."""

    content: bytes
    name: Path
    path: Path | None = None
    reader: ImageReader = ImageReader()

    def decode(self, channels: int) -> tuple[Tensor, Image.Image | None]:
        """Read the content, upright."""
        return _decode(self.reader, io.BytesIO(self.content), channels, self.name.as_posix())

    def picture(self) -> Image.Image:
        """Read the content, upright, as RGB."""
        return self.reader.load_image(io.BytesIO(self.content), name=self.name.as_posix())


@dataclass(frozen=True, eq=False)
class PillowPicture:
    """A Pillow image. One that says it is turned is brought upright, as its file would be."""

    image: Image.Image
    name: Path
    path: Path | None = None

    def decode(self, channels: int) -> tuple[Tensor, Image.Image | None]:
        """Convert the image."""
        picture = self.picture()
        return _with_channels(F.pil_to_tensor(picture), channels, self.name.as_posix()), picture

    def picture(self) -> Image.Image:
        """Return the image upright, as RGB."""
        return upright_rgb(self.image, self.name.as_posix())


@dataclass(frozen=True, eq=False)
class ArrayPicture:
    """An array [H, W] or [H, W, C]: uint8, uint16, or floating point in [0, 1].

    Attributes:
        array: The pixels.
        bgr: Whether the channels are blue, green, red, as OpenCV reads them.
    """

    array: np.ndarray
    bgr: bool
    name: Path
    path: Path | None = None

    def decode(self, channels: int) -> tuple[Tensor, Image.Image | None]:
        """Convert the array."""
        array = self.array[:, :, None] if self.array.ndim == 2 else self.array
        if array.ndim != 3 or array.size == 0 or array.shape[2] not in _allowed(channels):
            raise UserError(
                f"{self.name} is an array of shape {self.array.shape}; expected (height, width) or "
                f"(height, width, channels) with {_channels_text(channels)} channels"
                + _if_turned(array.ndim == 3 and array.shape[0] in _allowed(channels), "(1, 2, 0)")
            )
        if self.bgr and array.shape[2] in (3, 4):
            array = array[:, :, [2, 1, 0, 3][: array.shape[2]]]
        if array.dtype == np.uint16:
            array = array.astype(np.float32) / np.float32(65535)
        elif array.dtype != np.uint8:
            if not np.issubdtype(array.dtype, np.floating):
                raise UserError(
                    f"{self.name} is an array of {array.dtype}; expected uint8, uint16 or floats "
                    "in [0, 1]"
                )
            array = array.astype(np.float32)
        pixels = torch.from_numpy(np.array(array.transpose(2, 0, 1), order="C"))
        _check_range(pixels, self.name, "array")
        return _with_channels(pixels, channels, self.name.as_posix()), None

    def picture(self) -> Image.Image:
        """Return the pixels as a Pillow image."""
        return _as_picture(self.decode(_picture_channels(self.array.shape[2:]))[0])


@dataclass(frozen=True, eq=False)
class TensorPicture:
    """A tensor [C, H, W] or [H, W]: uint8, or floating point in [0, 1]."""

    tensor: Tensor
    name: Path
    path: Path | None = None

    def decode(self, channels: int) -> tuple[Tensor, Image.Image | None]:
        """Check and convert the tensor, which stays on its device."""
        pixels = self.tensor.detach()
        pixels = pixels[None] if pixels.dim() == 2 else pixels
        if pixels.dim() != 3 or pixels.numel() == 0 or pixels.shape[0] not in _allowed(channels):
            raise UserError(
                f"{self.name} is a tensor of shape {list(self.tensor.shape)}; expected "
                f"[{_channels_text(channels)}, height, width]"
                + _if_turned(
                    pixels.dim() == 3 and pixels.shape[-1] in _allowed(channels), "permute(2, 0, 1)"
                )
            )
        if pixels.dtype != torch.uint8:
            if not pixels.is_floating_point():
                raise UserError(
                    f"{self.name} is a tensor of {pixels.dtype}; expected uint8, or floating point "
                    "in [0, 1]"
                )
            pixels = pixels.float()
        _check_range(pixels, self.name, "tensor")
        return _with_channels(pixels, channels, self.name.as_posix()), None

    def picture(self) -> Image.Image:
        """Return the pixels as a Pillow image."""
        return _as_picture(self.decode(_picture_channels(self.tensor.shape[:-2]))[0].cpu())


def _decode(
    reader: ImageReader, source: Path | io.BytesIO, channels: int, name: str | None = None
) -> tuple[Tensor, Image.Image | None]:
    """Read a file; the picture is RGB, and None where it is not made on the way."""
    reader = dataclasses.replace(reader, channels=channels)
    if channels != _RGB:
        return reader.load_tensor(source, name=name), None
    picture = reader.load_image(source, name=name)
    return F.pil_to_tensor(picture), picture


def _allowed(channels: int) -> tuple[int, ...]:
    """Return the numbers of channels that can be converted to those of a model."""
    return (1, 3, 4) if channels in (1, _RGB) else (channels,)


def _channels_text(channels: int) -> str:
    return "1, 3 or 4" if channels in (1, _RGB) else str(channels)


def _if_turned(turned: bool, order: str) -> str:
    return f"; its channels seem to be elsewhere: bring them there with {order}" if turned else ""


def _with_channels(pixels: Tensor, channels: int, name: str) -> Tensor:
    """Return pixels [C, H, W] with as many channels as a model takes.

    Raises:
        UserError: They cannot be converted.
    """
    given = pixels.shape[0]
    if given == channels:
        return pixels
    if channels not in (1, _RGB) or given not in (1, 3, 4):
        raise UserError(
            f"{name} has {given} channels, and the model takes {channels}: give arrays or tensors "
            f"with {channels} channels"
        )
    pixels = pixels[:3]  # without alpha
    if channels == 1:
        # As floats: integers would be rounded down.
        return F.rgb_to_grayscale(F.to_dtype(pixels, torch.float32, scale=True))
    return pixels.expand(_RGB, -1, -1).contiguous() if given == 1 else pixels


def _check_range(pixels: Tensor, name: Path, kind: str) -> None:
    """Refuse floats that are NaN or far outside [0, 1], where a model would find nothing."""
    if not pixels.is_floating_point():
        return
    lowest, highest = (float(value) for value in pixels.aminmax())
    # Written so that NaN does not pass.
    if not (lowest >= -_RANGE_TOLERANCE and highest <= 1 + _RANGE_TOLERANCE):
        raise UserError(
            f"{name} is a {kind} of floats from {lowest:g} to {highest:g}; expected [0, 1]: divide "
            "pixel values by 255, or give uint8"
        )


def _picture_channels(shape: tuple[int, ...]) -> int:
    """Return the number of channels by which pixels can be read for drawing."""
    return _RGB if not shape or shape[0] in (1, 3, 4) else shape[0]


def _as_picture(pixels: Tensor) -> Image.Image:
    """Return pixels [C, H, W] as RGB; of more than three channels the first three."""
    values = F.to_dtype(
        pixels.clamp(0, 1) if pixels.is_floating_point() else pixels, torch.uint8, scale=True
    )
    values = values[:3] if len(values) >= 3 else values[:1].expand(3, -1, -1)
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())
