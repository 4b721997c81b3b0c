"""The core of inference: pictures are decoded in threads while the network works on others.

Python's :meth:`rcnn_ext.predict.predictor.Predictor.predict` and the command ``detect`` both run
on :func:`detect_stream`. Its memory does not grow with the number of pictures.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from rcnn_ext.data.annotations import ClassList
from rcnn_ext.errors import UserError
from rcnn_ext.predict.detections import Detections
from rcnn_ext.predict.pictures import Picture

# Gives the proposals [P, 4] for the picture at an index, counted from 0.
ProposalsOf = Callable[[int, Picture, Image.Image | None], Tensor]

_Found = TypeVar("_Found", bound=Detections)

_MASK_THRESHOLD = 0.5
# Decoding a photograph takes less time than a network needs for it, on any device that can be
# expected: more threads than these would only keep more pictures in memory.
_MAX_THREADS = 4


@dataclass(frozen=True, eq=False)
class DecodedPicture:
    """A picture that is ready for the network.

    Attributes:
        source: What was given.
        pixels: [C, H, W], float32 in [0, 1], or uint8 for a device that converts it.
        picture: The picture, RGB, where it is wanted for drawing.
        proposals: [P, 4] for a model that takes them, or None.
    """

    source: Picture
    pixels: Tensor
    picture: Image.Image | None
    proposals: Tensor | None


# Gives the raw results of a model for a batch of pictures: dicts of boxes, labels and scores.
BatchDetector = Callable[[Sequence[DecodedPicture]], list[dict[str, Tensor]]]


class Network:
    """Call a model on decoded pictures.

    Args:
        model: The model, in evaluation mode.
        device: Its device.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model
        self.device = device

    def __call__(self, pictures: Sequence[DecodedPicture]) -> list[dict[str, Tensor]]:
        """Return the results of the model, one dict per picture.

        Raises:
            UserError: The device has not enough memory for the batch.
        """
        proposals = [one.proposals for one in pictures if one.proposals is not None]
        return self.run([one.pixels for one in pictures], proposals or None)

    @torch.inference_mode()
    def run(
        self, pixels: Sequence[Tensor], proposals: Sequence[Tensor] | None = None
    ) -> list[dict[str, Tensor]]:
        """Return the results of the model for a batch.

        Args:
            pixels: N images [C, H_i, W_i], float32 in [0, 1] or uint8, on any device.
            proposals: For each image [P_i, 4], for a model that takes them.

        Returns:
            For each image ``boxes`` [D_i, 4], ``labels`` [D_i], ``scores`` [D_i], and what else the
            model gives, on the device of the model.

        Raises:
            UserError: The device has not enough memory for the batch.
        """
        images = [as_float(image.to(self.device, non_blocking=True)) for image in pixels]
        arguments: list[Any] = [images]
        if proposals is not None:
            arguments.append([boxes.to(self.device) for boxes in proposals])
        try:
            return self.model(*arguments)
        except torch.OutOfMemoryError as error:
            sizes = ", ".join(f"{image.shape[2]}x{image.shape[1]}" for image in images[:4])
            raise UserError(
                f"{self.device} has not enough memory for {len(images)} pictures ({sizes}) at "
                "once: take a smaller batch size or the CPU"
            ) from error


def detect_stream(
    detector: BatchDetector,
    pictures: Iterable[Picture | UserError],
    *,
    device: torch.device,
    classes: ClassList,
    channels: int = 3,
    batch_size: int = 1,
    min_score: float = 0.0,
    proposals: ProposalsOf | None = None,
    keep_pictures: bool = False,
    convert: bool = True,
    threads: int | None = None,
) -> Iterator[Detections | UserError]:
    """Run a detector on pictures, in batches, while the next ones are decoded.

    Args:
        detector: Gives the results for a batch, such as a :class:`Network`.
        pictures: The pictures, read as they are needed, or errors in their places.
        device: The device of the model.
        classes: The classes of its labels.
        channels: Number of channels that the model takes.
        batch_size: Number of pictures per batch.
        min_score: Minimum score of a detection.
        proposals: The source of proposals for a model that needs them.
        keep_pictures: Whether each result holds its decoded picture, which spares reading the file
            again where it is drawn at once.
        convert: Whether the threads make floats of the pixels, for a model on the CPU; a large
            picture takes less memory if the detector does so for each part of it.
        threads: Number of threads that decode; None means as many as there are cores, at most 4.

    Yields:
        For each picture, in order, its detections, or the error why it cannot be read or why the
        network fails. A batch that fails is done picture by picture.
    """

    def decode(index: int, one: Picture) -> DecodedPicture | UserError:
        try:
            pixels, picture = one.decode(channels)
            boxes = None if proposals is None else proposals(index, one, picture)
        except UserError as error:
            return error
        if device.type == "cpu":
            pixels = as_float(pixels) if convert else pixels
        elif device.type == "cuda" and not pixels.is_cuda and pixels.is_contiguous():
            # Views of mapped files are not contiguous, and stay on the disk.
            pixels = pixels.pin_memory()  # A copy to the GPU can then overlap with its work.
        return DecodedPicture(one, pixels, picture if keep_pictures else None, boxes)

    threads = threads or min(_MAX_THREADS, os.cpu_count() or 1)
    # One batch for the network, the next one being decoded.
    capacity = batch_size + max(batch_size, threads)
    waiting: deque[Future[DecodedPicture | UserError] | UserError] = deque()
    numbered = enumerate(pictures)
    executor = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        while True:
            for index, given in itertools.islice(numbered, capacity - len(waiting)):
                if isinstance(given, UserError):
                    waiting.append(given)
                else:
                    waiting.append(executor.submit(decode, index, given))
            if not waiting:
                return
            batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
            decoded = [one.result() if isinstance(one, Future) else one for one in batch]
            readable = [one for one in decoded if isinstance(one, DecodedPicture)]
            found = iter(_detected(detector, readable))
            for one in decoded:
                if isinstance(one, UserError):
                    yield one
                    continue
                raw = next(found)
                if isinstance(raw, UserError):
                    yield raw
                else:
                    yield _as_detections(one, raw, classes, min_score)
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _detected(
    detector: BatchDetector, pictures: Sequence[DecodedPicture]
) -> list[dict[str, Tensor] | UserError]:
    """Return the results of a batch; where it fails, those of each picture, or why it fails."""
    if not pictures:
        return []
    try:
        return list(detector(pictures))
    except (MemoryError, RuntimeError, UserError) as error:
        if len(pictures) > 1:
            return [found for one in pictures for found in _detected(detector, [one])]
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        failed = UserError(f"{pictures[0].source.path or pictures[0].source.name}: {reason}")
        failed.__cause__ = error
        return [failed]


def raising(results: Iterator[_Found | UserError]) -> Iterator[_Found]:
    """Yield results until there is an error, which is raised."""
    for one in results:
        if isinstance(one, UserError):
            raise one
        yield one


def check_options(
    min_score: float | None, batch_size: int | None, threads: int | None, on_error: str = "raise"
) -> None:
    """Refuse options of :func:`detect_stream`, and of methods on it, that are out of range.

    Raises:
        UserError: One is; the message names it.
    """
    if min_score is not None and not 0 <= min_score <= 1:
        raise UserError(f"min_score must be from 0 to 1, not {min_score}")
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"{name} must be a whole number from 1 on, not {value!r}")
    if on_error not in ("raise", "return"):
        raise UserError(f"on_error must be 'raise' or 'return', not {on_error!r}")


def as_float(pixels: Tensor) -> Tensor:
    """Return pixels as float32 in [0, 1], in the memory layout that they have."""
    if pixels.is_floating_point():
        return pixels
    if pixels.device.type == "cpu" and pixels.dtype == torch.uint8:
        # NumPy's loop stays in its thread. A thread that decodes would have OpenMP threads of its
        # own for a loop of PyTorch's, which then wait for work on the cores that the network needs.
        # PyTorch's memory is aligned as matrix products expect it, whose last bits depend on that.
        floats = torch.empty_like(pixels, dtype=torch.float32)
        np.multiply(pixels.numpy(), np.float32(1 / 255), out=floats.numpy())
        return floats
    return F.to_dtype(pixels, torch.float32, scale=True)


def as_masks(masks: Tensor) -> Tensor:
    """Return masks as bool [D, H, W]; torchvision's are probabilities [D, 1, H, W]."""
    masks = masks.squeeze(1) if masks.dim() == 4 else masks
    return masks > _MASK_THRESHOLD if masks.is_floating_point() else masks.bool()


@dataclass(frozen=True, eq=False)
class _Held:
    """A picture that has been decoded already."""

    image: Image.Image

    def picture(self) -> Image.Image:
        return self.image


def _as_detections(
    one: DecodedPicture, found: dict[str, Tensor], classes: ClassList, min_score: float
) -> Detections:
    found = {name: value.cpu() for name, value in found.items()}
    keep = found["scores"] >= min_score
    masks = found.get("masks")
    return Detections(
        boxes=found["boxes"][keep].float(),
        labels=found["labels"][keep],
        scores=found["scores"][keep].float(),
        masks=None if masks is None else as_masks(masks[keep]),
        classes=classes,
        height=one.pixels.shape[1],
        width=one.pixels.shape[2],
        path=one.source.path,
        name=one.source.name,
        source=one.source if one.picture is None else _Held(one.picture),
    )
