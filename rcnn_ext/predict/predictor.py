"""A trained model with all that it needs to be used: its classes, its recipe and its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Self

from rcnn_ext.config import Recipe
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.data.formats.csv_boxes import listed_images
from rcnn_ext.errors import UserError
from rcnn_ext.models import Localizer
from rcnn_ext.models.fast_rcnn import needs_proposals
from rcnn_ext.predict.detections import Detections
from rcnn_ext.predict.pictures import Picture, PictureFile
from rcnn_ext.predict.sources import open_pictures
from rcnn_ext.predict.stream import Network, ProposalsOf, detect_stream
from rcnn_ext.selective_search.from_config import SearchedProposals

MIN_SCORE = 0.05
_BATCH_SIZE = 4
_RGB = 3


class Predictor(nn.Module):
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

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes: ``class_names[label - 1]`` is the name of a label."""
        return self.classes.names

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        parameter = next(self.detector.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

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
            batch_size: Number of pictures per batch; None takes that of the recipe's evaluation.
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
        _check_options(min_score, batch_size, on_error, threads)
        kind, pictures = open_pictures(images, bgr=bgr, read_list=self._read_list)
        results = self.stream(
            pictures,
            min_score=min_score,
            batch_size=batch_size,
            proposals=self._proposals(proposals, kind),
            threads=threads,
        )
        if on_error == "raise":
            results = _raising(results)
        if kind == "stream":
            return results
        found = list(results)
        if isinstance(proposals, Sequence) and kind == "many" and len(proposals) != len(found):
            raise UserError(f"{len(found)} pictures, but proposals for {len(proposals)}")
        return found[0] if kind == "one" else found

    def stream(
        self,
        pictures: Any,
        *,
        min_score: float | None = None,
        batch_size: int | None = None,
        proposals: ProposalsOf | None = None,
        keep_pictures: bool = False,
        threads: int | None = None,
    ) -> Iterator[Detections | UserError]:
        """Yield the detections in each of some opened pictures, or the error of a broken one.

        Args:
            pictures: What :func:`rcnn_ext.predict.sources.open_pictures` gives.
            min_score: As for :meth:`predict`.
            batch_size: As for :meth:`predict`.
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
            proposals = self._search()
        if min_score is None:
            min_score = 0.0 if self.localizes else MIN_SCORE
        return detect_stream(
            Network(self.detector, self.device),
            pictures,
            device=self.device,
            classes=self.classes,
            channels=self.channels,
            batch_size=batch_size or self.usual_batch_size,
            min_score=min_score,
            proposals=proposals,
            keep_pictures=keep_pictures,
            threads=threads,
        )

    @property
    def usual_batch_size(self) -> int:
        """Number of pictures per batch where none is given."""
        return _BATCH_SIZE if self.recipe is None else self.recipe.evaluation.batch_size

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the detector."""
        return self.detector(*args, **kwargs)

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

    def _read_list(self, path: Path) -> list[tuple[Path, Path]]:
        return listed_images(path, config=None if self.recipe is None else self.recipe.data.csv)

    def _search(self) -> ProposalsOf:
        """Return the search that the recipe describes, or the default one."""
        run = Path() if self.path is None else self.path.parent
        searched = SearchedProposals(self.recipe or Recipe(), run)

        def search(index: int, one: Picture, picture: Image.Image | None) -> Tensor:
            # Only a file has proposals in a folder: a Pillow image may have been changed.
            path = one.path if isinstance(one, PictureFile) else None
            return torch.from_numpy(searched.boxes_in(path, picture or one.picture()))

        return search

    def _proposals(self, given: Any, kind: str) -> ProposalsOf | None:
        """Return the source of the proposals that ``predict`` is given; None where it is None.

        Raises:
            UserError: The model takes none, or they are malformed.
        """
        if given is None:
            return None
        if not needs_proposals(self.detector):
            raise UserError("proposals are for Fast R-CNN; this model finds its own")
        if kind == "stream":
            raise UserError("proposals go with a list of pictures, not with an iterator")
        boxes = [given] if kind == "one" else list(given)

        def take(index: int, one: Picture, picture: Image.Image | None) -> Tensor:
            if index >= len(boxes):
                raise UserError(f"{one.name} has no proposals: there are {len(boxes)}")
            found = torch.as_tensor(np.asarray(boxes[index], dtype=np.float32))
            if found.numel() == 0:
                return found.reshape(0, 4)
            if found.dim() != 2 or found.shape[1] != 4:
                raise UserError(
                    f"the proposals of {one.name} have the shape {list(found.shape)}; expected "
                    "[number of boxes, 4]"
                )
            if not bool(torch.isfinite(found).all() and (found[:, 2:] > found[:, :2]).all()):
                raise UserError(
                    f"the proposals of {one.name} need finite coordinates with x1 < x2 and y1 < y2"
                )
            return found

        return take


def _raising(results: Iterator[Detections | UserError]) -> Iterator[Detections]:
    for one in results:
        if isinstance(one, UserError):
            raise one
        yield one


def _check_options(
    min_score: float | None, batch_size: int | None, on_error: str, threads: int | None
) -> None:
    if min_score is not None and not 0 <= min_score <= 1:
        raise UserError(f"min_score must be from 0 to 1, not {min_score}")
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"{name} must be a whole number from 1 on, not {value!r}")
    if on_error not in ("raise", "return"):
        raise UserError(f"on_error must be 'raise' or 'return', not {on_error!r}")
