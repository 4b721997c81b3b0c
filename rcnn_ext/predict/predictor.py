"""A trained model with all that it needs to be used: its classes, its recipe and its pictures."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import Self

from rcnn_ext.config import Recipe
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.data.formats.csv_boxes import listed_images
from rcnn_ext.data.images import ImageReader
from rcnn_ext.distributed import choose_device
from rcnn_ext.errors import UserError
from rcnn_ext.models import Localizer
from rcnn_ext.models.fast_rcnn import needs_proposals
from rcnn_ext.predict import publish
from rcnn_ext.predict.checkpoint import SavedDetector
from rcnn_ext.predict.detections import Detections
from rcnn_ext.predict.mapped import mapped
from rcnn_ext.predict.proposals import proposals_for, searched_proposals
from rcnn_ext.predict.publishable import Publishable
from rcnn_ext.predict.saved import prepare_detector
from rcnn_ext.predict.sources import open_pictures
from rcnn_ext.predict.stream import (
    BatchDetector,
    Network,
    ProposalsOf,
    check_options,
    detect_stream,
    raising,
)
from rcnn_ext.predict.tiles import OVERLAP, TiledNetwork, Tiling
from rcnn_ext.predict.video import FrameDetections, open_video, stream_video
from rcnn_ext.predict.video_frames import FrameRange

MIN_SCORE = 0.05
_BATCH_SIZE = 4
_RGB = 3


class Predictor(Publishable, nn.Module):
    """Run a detector on pictures in any form.

    :func:`rcnn_ext.load` makes one; a model of your own becomes one with the names of its classes.
    Calls, attributes and weights are those of the detector: ``predictor(images)`` takes a list of
    tensors, as the detector does, and ``predictor.backbone`` is the detector's.

    Args:
        detector: A model of this package or of torchvision, or any module that gives for a list of
            images [3, H_i, W_i] dicts of ``boxes``, ``labels``, ``scores`` and maybe ``masks``.
        classes: Names of the classes by label, from 1 on; or the class list of a saved model.
        recipe: The recipe it was trained by, or None.
        path: The file it was loaded from, or None.

    Attributes:
        detector: The model itself.
        classes: The classes that labels stand for.
        recipe: The recipe it was trained by, or None.
        path: The file it was loaded from, or None.

    Raises:
        ValueError: Two classes have one name.

    Example:
        >>> model = Predictor(faster_rcnn("resnet18", num_classes=3).eval(), ["cat", "dog"])
        >>> model.predict("photo.jpg", min_score=0.5).draw()
    """

    def __init__(
        self,
        detector: nn.Module,
        classes: Sequence[str] | ClassList,
        *,
        recipe: Recipe | None = None,
        path: Path | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(classes, ClassList):
            classes = ClassList(tuple(classes), tuple(range(1, len(classes) + 1)))
        self.detector = detector
        self.classes = classes
        self.recipe = recipe
        self.path = path
        self.training = detector.training

    @classmethod
    def of_saved(
        cls,
        saved: SavedDetector,
        device: torch.device,
        *,
        dtype: torch.dtype | None = None,
        prepare: bool = True,
    ) -> Self:
        """Build a saved model.

        Args:
            saved: The model.
            device: The device to put it on.
            dtype: As for :func:`rcnn_ext.load`.
            prepare: As for :func:`rcnn_ext.load`.
        """
        detector = saved.build(device)
        prepare_detector(detector, dtype=dtype, prepare=prepare)
        return cls(detector, saved.classes, recipe=saved.recipe, path=saved.path)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; that of a label is ``class_names[label - 1]``."""
        return self.classes.names

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        parameter = next(self.detector.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @property
    def reader(self) -> ImageReader:
        """Reader of files, with the options of the recipe."""
        data = (self.recipe or Recipe()).data
        return dataclasses.replace(ImageReader.of(data), channels=self.channels)

    @property
    def channels(self) -> int:
        """Number of channels of the images that the detector takes."""
        transform = getattr(self.detector, "transform", None)
        return len(getattr(transform, "image_mean", range(_RGB)))

    @property
    def localizes(self) -> bool:
        """Whether the detector gives exactly one detection per picture, with any score."""
        return isinstance(self.detector, Localizer) or getattr(self.detector, "localizes", False)

    def predict(
        self,
        images: Any,
        *,
        min_score: float | None = None,
        batch_size: int | None = None,
        tile: int | tuple[int, int] | None = None,
        overlap: float = OVERLAP,
        whole_picture: bool = True,
        proposals: Any = None,
        bgr: bool = False,
        on_error: Literal["raise", "return"] = "raise",
        threads: int | None = None,
    ) -> Any:
        """Find objects in pictures.

        Pictures are decoded in background threads while the network works. Boxes are in pixels of
        the upright picture: one whose metadata say that it is turned is brought upright.

        Args:
            images: One picture, or several. One is a path or ``file://`` URL; a Pillow image; an
                array [H, W] or [H, W, C], uint8, uint16, or floats in [0, 1]; a tensor [C, H, W],
                uint8, or floating point in [0, 1]; the bytes of a picture file, or an open one.
                Several are a folder, a pattern such as ``"film/*.png"``, a CSV list, a batch
                [N, H, W, C] or [N, C, H, W], or a list of any of these. An iterator, such as a
                generator of video frames, is read while its results are.
            min_score: Minimum score of a detection; None means 0.05, or 0 for a localizer.
            batch_size: Number of pictures or tiles per batch; None takes that of the recipe's
                evaluation.
            tile: Side of the tiles in pixels, or (width, height), by which larger pictures are
                searched, since small objects would vanish when such a picture is resized. What is
                found in several tiles is merged. None means whole pictures.
            overlap: Fraction of a tile that its neighbor has too; an object up to this size is
                whole in one of them.
            whole_picture: Whether to search the whole of a tiled picture too, for large objects.
            proposals: For Fast R-CNN the boxes [P, 4] (x1, y1, x2, y2) of the picture, in its
                pixels, or a list of such, one per picture; None searches for them as the recipe
                says.
            bgr: Whether arrays have their channels as blue, green, red, as OpenCV reads them.
            on_error: ``"raise"`` stops at the first picture that cannot be read; ``"return"`` puts
                the :class:`rcnn_ext.errors.UserError` in its place and does the others.
            threads: Number of threads that decode; None means as many as there are cores, at most
                4.

        Returns:
            :class:`Detections` for one picture, a list of them for several, and an iterator over
            them for an iterator.

        Raises:
            UserError: A picture cannot be read, an option is out of range, or the model is in
                training mode.

        Example:
            >>> found = rcnn_ext.load("runs/first").predict("photo.jpg", min_score=0.5)
            >>> found.names, found.boxes
        """
        check_options(min_score, batch_size, threads, on_error)
        kind, pictures = open_pictures(
            images, bgr=bgr, read_list=self._read_list, reader=self.reader
        )
        results = self.stream(
            pictures,
            min_score=min_score,
            batch_size=batch_size,
            tiling=None if tile is None else Tiling.of(tile, overlap, whole_picture),
            proposals=proposals_for(self.detector, proposals, kind),
            threads=threads,
        )
        if on_error == "raise":
            results = raising(results)
        if kind == "stream":
            return results
        found = list(results)
        if isinstance(proposals, Sequence) and kind == "many" and len(proposals) != len(found):
            raise UserError(f"{len(found)} pictures, but proposals for {len(proposals)}")
        return found[0] if kind == "one" else found

    def predict_video(
        self,
        video: str | os.PathLike[str],
        *,
        min_score: float | None = None,
        batch_size: int | None = None,
        tile: int | tuple[int, int] | None = None,
        overlap: float = OVERLAP,
        whole_picture: bool = True,
        every: int = 1,
        start: float | None = None,
        end: float | None = None,
        keep_frames: bool = True,
        on_error: Literal["raise", "return"] = "raise",
        threads: int | None = None,
    ) -> Iterator[FrameDetections]:
        """Find objects in the frames of a video. Needs the extra ``video``.

        Frames are read as their results are, so that memory does not grow with the video. They are
        upright: a video whose metadata say that it is turned is brought upright.

        Args:
            video: A path; a URL (``rtsp://``, ``http://``, ...) or a camera (``/dev/video0``),
                which PyAV opens; or ``-`` for standard input.
            min_score: As for :meth:`predict`.
            batch_size: Number of frames or tiles per batch; None takes that of the recipe's
                evaluation.
            tile: As for :meth:`predict`.
            overlap: As for :meth:`predict`.
            whole_picture: As for :meth:`predict`.
            every: Search each n-th frame only.
            start: Time in seconds from which on to search; None means the beginning.
            end: Time in seconds before which to search; None means the end.
            keep_frames: Whether results hold the pixels of their frames, for ``draw``; without
                them, the results of a whole video fit into a list.
            on_error: Of a damaged video all that can be read is given first. Then ``"raise"``
                raises the error, which says where the video ended, and ``"return"`` gives it as the
                last result.
            threads: As for :meth:`predict`.

        Returns:
            An iterator over the :class:`Detections` of the frames, which also have ``frame``, the
            position in the video from 0, and ``time``, in seconds.

        Raises:
            UserError: The video cannot be opened, an option is out of range, PyAV is not installed,
                or the model is in training mode.

        Example:
            >>> for found in rcnn_ext.load("runs/first").predict_video("street.mp4", every=5):
            ...     print(found.frame, found.time, found.names)
        """
        check_options(min_score, batch_size, threads, on_error)
        tiling = None if tile is None else Tiling.of(tile, overlap, whole_picture)
        frames = FrameRange(every, start, end)
        results = stream_video(
            self,
            open_video(self, video, frames),
            min_score=min_score,
            batch_size=batch_size,
            tiling=tiling,
            keep_frames=keep_frames,
            threads=threads,
        )
        return raising(results) if on_error == "raise" else results  # type: ignore[return-value]

    def stream(
        self,
        pictures: Any,
        *,
        min_score: float | None = None,
        batch_size: int | None = None,
        tiling: Tiling | None = None,
        proposals: ProposalsOf | None = None,
        keep_pictures: bool = False,
        threads: int | None = None,
    ) -> Iterator[Detections | UserError]:
        """Yield the detections in each of some opened pictures, or the error of a broken one.

        Args:
            pictures: What :func:`rcnn_ext.predict.sources.open_pictures` gives.
            min_score: As for :meth:`predict`.
            batch_size: As for :meth:`predict`.
            tiling: The division of large pictures into tiles, or None.
            proposals: The source of proposals; None means that of the recipe, where they are
                needed.
            keep_pictures: Whether results hold the decoded pictures.
            threads: As for :meth:`predict`.

        Raises:
            UserError: The model is in training mode, or a batch does not fit into memory.
        """
        if self.training or self.detector.training:
            raise UserError("the model is in training mode: call model.eval() first")
        if proposals is None and needs_proposals(self.detector):
            run = Path() if self.path is None else self.path.parent
            proposals = searched_proposals(self.recipe or Recipe(), run)
        if min_score is None:
            min_score = 0.0 if self.localizes else MIN_SCORE
        batch_size = batch_size or self._usual_batch_size()
        network = Network(self.detector, self.device)
        detector: BatchDetector = network
        if tiling is not None:
            if self.localizes:
                raise UserError("a localizer finds one object per picture: leave out tile")
            detector = TiledNetwork(network, tiling, batch_size, min_score, self.reader.max_pixels)
        return detect_stream(
            detector,
            pictures if tiling is None else map(mapped, pictures),
            device=self.device,
            classes=self.classes,
            channels=self.channels,
            batch_size=batch_size if tiling is None else 1,  # tiles fill the batches
            min_score=min_score,
            proposals=proposals,
            keep_pictures=keep_pictures,
            convert=tiling is None,
            threads=threads,
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the detector."""
        return self.detector(*args, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike[str],
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        prepare: bool = True,
        **options: Any,
    ) -> Self:
        """Load a model from a folder, or from the Hugging Face Hub. Needs the extra ``hf``.

        Args:
            name_or_folder: What :meth:`save_pretrained` wrote, or ``owner/name``.
            device: As for :func:`rcnn_ext.load`.
            dtype: As for :func:`rcnn_ext.load`.
            prepare: As for :func:`rcnn_ext.load`.
            **options: ``revision``, ``token``, ``cache_dir``, ``force_download`` and
                ``local_files_only``, as of ``huggingface_hub``.

        Raises:
            UserError: It cannot be fetched, or is no model.
        """
        saved = publish.from_pretrained(name_or_folder, **options)
        return cls.of_saved(saved, choose_device(device), dtype=dtype, prepare=prepare)

    def train(self, mode: bool = True) -> Self:
        """Switch the detector between training and evaluation.

        Raises:
            RuntimeError: It was prepared for inference.
        """
        if mode or self.detector.training:
            self.detector.train(mode)
        self.training = mode
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the weights of the detector, under its own names."""
        return self.detector.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights of the detector, under its own names."""
        return self.detector.load_state_dict(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "detector":  # not there yet, as while it is unpickled
                raise
            return getattr(self.detector, name)

    def _usual_batch_size(self) -> int:
        return _BATCH_SIZE if self.recipe is None else self.recipe.evaluation.batch_size

    def _read_list(self, path: Path) -> list[tuple[Path, Path]]:
        return listed_images(path, config=None if self.recipe is None else self.recipe.data.csv)
