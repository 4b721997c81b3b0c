"""Call what was exported, in whatever runtime, like the model that it was exported from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import Self

from rcnn_ext.models.core import PaddedDetections
from rcnn_ext.models.detector import Detector
from rcnn_ext.models.fast_rcnn import needs_proposals
from rcnn_ext.models.inputs import build_transform
from rcnn_ext.models.localizer import Localizer
from rcnn_ext.predict.checkpoint import ModelFormatError

# From images [N, 3, H, W] in [0, 1], where it takes them sizes [N, 2], and for Fast R-CNN proposals
# [N, P, 4] and counts [N], to padded detections: ``rcnn_ext.models.core.DeployedDetector``.
Program = Callable[..., PaddedDetections]

# The facts that are true or false.
_ANSWERS = ("takes_proposals", "localizes", "takes_sizes")


@dataclass(frozen=True)
class ModelFacts:
    """Everything outside an exported detector that its results depend on.

    Attributes:
        min_size: Length of the shorter side that images are brought to.
        max_size: Largest length of the longer side.
        fixed_size: (width, height) that every image is brought to instead, or None.
        takes_proposals: Whether it takes proposals too.
        localizes: Whether it is a localizer.
        takes_sizes: Whether it takes the sizes of images too, which may then be padded.
    """

    min_size: int
    max_size: int
    fixed_size: tuple[int, int] | None
    takes_proposals: bool
    localizes: bool
    takes_sizes: bool

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the program's inputs, in order."""
        sizes = ("image_sizes",) if self.takes_sizes else ()
        proposals = ("proposals", "proposal_counts") if self.takes_proposals else ()
        return "images", *sizes, *proposals

    @classmethod
    def of(
        cls,
        detector: Detector,
        fixed_size: tuple[int, int] | None = None,
        takes_sizes: bool = True,
    ) -> Self:
        """Return the facts of a detector.

        Args:
            detector: The detector.
            fixed_size: (width, height) in place of the detector's own sizes.
            takes_sizes: Whether the program takes the sizes of images.
        """
        transform = detector.transform
        return cls(
            min_size=int(transform.min_size[-1]),
            max_size=int(transform.max_size),
            fixed_size=fixed_size or transform.fixed_size,
            takes_proposals=needs_proposals(detector),
            localizes=isinstance(detector, Localizer),
            takes_sizes=takes_sizes,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON takes them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, path: Path, facts: Any) -> Self:
        """Return the facts that a file holds.

        Args:
            path: The file, for messages.
            facts: What :meth:`as_dict` gave.

        Raises:
            ModelFormatError: They are none.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(facts, dict) or set(facts) != set(names):
            raise ModelFormatError(
                f"{path} is damaged, edited, or from another version of rcnn-ext: the facts of its "
                f"model are not {', '.join(names)}; export the run again"
            )
        fixed = facts["fixed_size"]
        sizes = [facts["min_size"], facts["max_size"]] + (fixed if isinstance(fixed, list) else [])
        if not (fixed is None or (isinstance(fixed, list) and len(fixed) == 2)) or not all(
            type(size) is int and 1 <= size < 2**31 for size in sizes
        ):
            raise ModelFormatError(
                f"{path} is damaged, or edited: the sizes of its images are no whole numbers of "
                "pixels above 0"
            )
        if not all(type(facts[name]) is bool for name in _ANSWERS):
            raise ModelFormatError(
                f"{path} is damaged, or edited: the facts of its model are not true or false"
            )
        return cls(**facts | {"fixed_size": None if fixed is None else tuple(fixed)})


class ExportedModel(nn.Module):
    """Call a program like the model that it was exported from, with images of any sizes.

    Args:
        program: The function of a padded batch.
        facts: What is known of the model.
        path: The file that it is from, for messages.
    """

    def __init__(self, program: Program, facts: ModelFacts, path: Path) -> None:
        super().__init__()
        self.path = path
        self.facts = facts
        self.program = program
        # Name and version, of a program that is not of PyTorch.
        self.runtime: tuple[str, ...] = getattr(program, "runtime", ())
        # Normalization and padding are in the program.
        self.transform = build_transform(
            facts.min_size, facts.max_size, None, None, {"fixed_size": facts.fixed_size}
        )
        # Programs have no mode, and say so when asked to change it.
        self.transform.training = self.training = False

    @property
    def takes_proposals(self) -> bool:
        """Whether the model takes proposals besides images."""
        return self.facts.takes_proposals

    @property
    def localizes(self) -> bool:
        """Whether the model finds one object in each image."""
        return self.facts.localizes

    def forward(
        self, images: Sequence[Tensor], proposals: Sequence[Tensor] | None = None
    ) -> list[dict[str, Tensor]]:
        """Detect objects.

        Args:
            images: N images [3, H_i, W_i], float32 in [0, 1], of any sizes.
            proposals: For each image [P_i, 4], in its pixels, where the program takes them.

        Returns:
            For each image ``boxes`` [D_i, 4] in its pixels, ``labels`` [D_i], ``scores`` [D_i].

        Raises:
            ModelFormatError: The program fails, as it does when its file is damaged.
        """
        resized = [self.transform.resize(image)[0] for image in images]
        found: dict[int, dict[str, Tensor]] = {}
        for group in self._batches(resized):
            given = None if proposals is None else [proposals[i] for i in group]
            detections = self._run([images[i] for i in group], [resized[i] for i in group], given)
            found.update(zip(group, detections, strict=True))
        return [found[index] for index in range(len(images))]

    def _batches(self, resized: Sequence[Tensor]) -> list[list[int]]:
        """Return the indices of the images of each batch: of one size, if sizes are not taken."""
        if self.facts.takes_sizes:
            return [list(range(len(resized)))]
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(resized):
            groups.setdefault(tuple(image.shape), []).append(index)
        return list(groups.values())

    def _run(
        self, images: list[Tensor], resized: list[Tensor], proposals: list[Tensor] | None
    ) -> list[dict[str, Tensor]]:
        """Detect objects in one batch of images, given as they are and resized."""
        # Ratios [N, 4] that bring boxes from an image to the resized one.
        ratios = images[0].new_tensor(
            [
                [new.shape[2] / old.shape[2], new.shape[1] / old.shape[1]] * 2
                for old, new in zip(images, resized, strict=True)
            ]
        )
        sizes = [(image.shape[1], image.shape[2]) for image in resized]
        height, width = (max(sides) for sides in zip(*sizes, strict=True))
        batch = torch.stack(
            [
                F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))
                for image in resized
            ]
        )
        arguments = [batch]
        if self.facts.takes_sizes:
            arguments.append(batch.new_tensor(sizes))
        if self.takes_proposals:
            assert proposals is not None
            arguments += _padded_proposals(proposals, ratios)
        with naming(self.path, *self.runtime):
            # Compiled code reads its inputs by the strides that it was compiled for, whatever those
            # of the inputs are, and does not say so.
            boxes, scores, labels, counts = self.program(*(one.contiguous() for one in arguments))
            boxes = boxes / ratios[:, None]
            return [
                {"boxes": boxes[i, :n], "labels": labels[i, :n], "scores": scores[i, :n]}
                for i, n in enumerate(counts.tolist())
            ]


@contextmanager
def naming(
    path: Path, runtime: str = "PyTorch", version: str = torch.__version__
) -> Iterator[None]:
    """Turn whatever a damaged file makes a runtime raise into an error about the file.

    Args:
        path: The file.
        runtime: Name of the runtime.
        version: Its version.

    Raises:
        ModelFormatError: Something was raised, other than for a lack of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelFormatError(
            f"the program in {path} cannot be run, since it is damaged or from another {runtime} "
            f"than this ({version}): {reason}"
        ) from error


def _padded_proposals(proposals: Sequence[Tensor], ratios: Tensor) -> list[Tensor]:
    """Return proposals [N, P, 4] in pixels of the resized images, and their counts [N].

    P is 1 or more: runtimes need not take empty tensors.
    """
    scaled = [boxes * ratio for boxes, ratio in zip(proposals, ratios, strict=True)]
    counts = torch.tensor([len(boxes) for boxes in scaled], device=ratios.device)
    padded = pad_sequence([F.pad(boxes, (0, 0, 0, 1)) for boxes in scaled], batch_first=True)
    return [padded[:, : max(1, int(counts.max()))], counts]
