"""Export a trained model: its weights as safetensors, or a program of ``torch.export``.

Both files hold the recipe and the names of the classes, and ``rcnn-ext detect`` and ``rcnn-ext
eval`` take them like a checkpoint.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from rcnn_ext.errors import UserError
from rcnn_ext.files import replacing
from rcnn_ext.models import Localizer
from rcnn_ext.models.fast_rcnn import needs_proposals
from rcnn_ext.models.folding import fold_norms
from rcnn_ext.predict.checkpoint import (
    ENTRY,
    ModelFormatError,
    SavedDetector,
    describe,
    read_entry,
)
from rcnn_ext.predict.program_file import FACTS, ProgramError, read_program

WEIGHTS_SUFFIX, PROGRAM_SUFFIX = ".safetensors", ".pt2"

# Any number of proposals but 0 and 1, which torch.export specializes on.
_EXAMPLE_PROPOSALS = 7


def export(
    saved: SavedDetector, path: str | os.PathLike[str], size: tuple[int, int] | None = None
) -> None:
    """Write a trained model in the format that the suffix names.

    ``.safetensors``: the weights, for :meth:`SavedDetector.build`; the metadata have the rest.
    ``.pt2``: a program that runs wherever torch and the operators of this package are (``import
    rcnn_ext.ops``), without the code of the models. ``torch.export.load(path).module()`` takes an
    image [3, height, width], float32 in [0, 1], and for Fast R-CNN proposals [P, 4]; it gives boxes
    [D, 4] in pixels of the image, labels [D] and scores [D], the same as the model. It holds no
    pickle and no source code.

    Args:
        saved: The model.
        path: The file to write.
        size: Width and height of the images of a program; None takes the recipe's
            ``model.fixed_size``, or a square of ``model.min_size``.

    Raises:
        UserError: Another suffix, or a size for weights.
    """
    path = Path(path)
    entry = describe(saved.recipe, saved.classes, saved.step, saved.state)[ENTRY]
    if path.suffix == WEIGHTS_SUFFIX:
        if size is not None:
            raise UserError("weights have no size of images; --size is for programs (.pt2)")
        _write_weights(saved, path, entry)
    elif path.suffix == PROGRAM_SUFFIX:
        _write_program(saved, path, entry, size or _usual_size(saved))
    else:
        raise UserError(
            f"{path.name} must end in {WEIGHTS_SUFFIX} (weights) or {PROGRAM_SUFFIX} (a program)"
        )


def load_exported(path: str | os.PathLike[str]) -> SavedDetector:
    """Read what :func:`export` wrote.

    Nothing in the file is unpickled or evaluated; see :mod:`rcnn_ext.predict.program_file`.

    Raises:
        ModelFormatError: It is damaged, or was not written by :func:`export`, or is a program with
            more in it than :func:`export` writes.
    """
    path = Path(path)
    try:
        return _load_weights(path) if path.suffix == WEIGHTS_SUFFIX else _load_program(path)
    except ProgramError as error:
        raise ModelFormatError(str(error)) from error
    except (UserError, ModuleNotFoundError):
        raise
    except Exception as error:
        # Each format has exceptions of its own for damaged files.
        reason = str(error).partition("\n")[0]
        raise ModelFormatError(
            f"{path} was not written by rcnn-ext export, or is damaged: {reason}"
        ) from error


@dataclass(frozen=True)
class SavedProgram(SavedDetector):
    """A detector as a program file holds it.

    Attributes:
        program: The exported program, for the CPU.
        facts: Arguments of :class:`ExportedModel`.
    """

    program: Any = None
    facts: Any = None

    def build(self, device: torch.device) -> nn.Module:
        """Return the program as a model in evaluation mode on a device.

        Raises:
            ModelFormatError: Its graph is damaged.
        """
        program = self.program
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, str(device))
        with _naming(self.path):
            module = program.module()
        return ExportedModel(module, path=self.path, **self.facts)


class ExportedModel(nn.Module):
    """Call a program like a model, with images of any size, which are resized to the program's.

    Args:
        program: A function of one image of a fixed size.
        width: Width of its images in pixels.
        height: Height of its images in pixels.
        takes_proposals: Whether it takes proposals too.
        localizes: Whether it is a localizer.
        path: The file that it is from, for messages.
    """

    def __init__(
        self,
        program: nn.Module,
        width: int,
        height: int,
        takes_proposals: bool,
        localizes: bool,
        path: Path,
    ) -> None:
        super().__init__()
        self.path = path
        self.program = program
        self.size = (height, width)
        self.takes_proposals = takes_proposals
        self.localizes = localizes
        # Programs have no mode, and say so when asked to change it.
        self.training = False

    def forward(
        self, images: Sequence[torch.Tensor], proposals: Sequence[torch.Tensor] | None = None
    ) -> list[dict[str, torch.Tensor]]:
        """Detect objects, image by image.

        Args:
            images: N images [3, H_i, W_i], float32 in [0, 1].
            proposals: For each image [P_i, 4], in its pixels, where the program takes them.

        Returns:
            For each image ``boxes`` [D_i, 4] in its pixels, ``labels`` [D_i], ``scores`` [D_i].

        Raises:
            ModelFormatError: The program fails, as it does when its file is damaged.
        """
        found = []
        for index, image in enumerate(images):
            scale = image.new_tensor(
                [self.size[1] / image.shape[2], self.size[0] / image.shape[1]] * 2
            )
            if image.shape[1:] != self.size:
                image = F.interpolate(image[None], self.size, mode="bilinear", antialias=True)[0]
            arguments = [image]
            if self.takes_proposals:
                assert proposals is not None
                arguments.append(proposals[index] * scale)
            with _naming(self.path):
                boxes, labels, scores = self.program(*arguments)
            found.append({"boxes": boxes / scale, "labels": labels, "scores": scores})
        return found


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever the graph of a damaged file makes PyTorch raise into an error about the file.

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
            f"the program in {path} cannot be run, since it is damaged or from another PyTorch "
            f"than this ({torch.__version__}): {reason}"
        ) from error


class _OneImage(nn.Module):
    """Wrap a model as a function of one image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, image: torch.Tensor, proposals: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        arguments: list[Any] = [[image]] if proposals is None else [[image], [proposals]]
        (found,) = self.model(*arguments)
        return found["boxes"], found["labels"], found["scores"]


def _usual_size(saved: SavedDetector) -> tuple[int, int]:
    model = saved.recipe.model
    if model.fixed_size is not None:
        return model.fixed_size
    side = model.min_size if isinstance(model.min_size, int) else model.min_size[-1]
    return side, side


def _write_weights(saved: SavedDetector, path: Path, entry: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in saved.weights.items()}
    # The names of the classes by themselves too, for readers that know nothing of recipes.
    metadata = {ENTRY: json.dumps(entry), "class_names": json.dumps(entry["class_names"])}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Order the metadata of a ``.safetensors`` file by name, in place.

    The library writes them in an order of chance. One model is to be one file, whose hash says
    what results were made with.
    """
    with path.open("r+b") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        # The order of tensors is left as it is.
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def _load_weights(path: Path) -> SavedDetector:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if ENTRY not in metadata:
            raise ModelFormatError(f"{path} was not written by rcnn-ext export")
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return SavedDetector(
        path=path, weights=weights, **read_entry(path, json.loads(metadata[ENTRY]))
    )


def _write_program(
    saved: SavedDetector, path: Path, entry: dict[str, Any], size: tuple[int, int]
) -> None:
    width, height = size
    model = saved.build(torch.device("cpu"))
    # PyTorch's batch norm asks whether its input is empty, which is unknown while a program with
    # any number of RoIs is recorded.
    fold_norms(model)
    channels = saved.recipe.model.in_channels
    arguments: tuple[torch.Tensor, ...] = (torch.rand(channels, height, width),)
    dynamic: tuple[Any, ...] = (None,)
    if needs_proposals(model):
        corners = torch.rand(_EXAMPLE_PROPOSALS, 2) * min(size) / 2
        arguments += (torch.cat([corners, corners + min(size) / 4], dim=1),)
        dynamic += ({0: torch.export.Dim.DYNAMIC},)
    with torch.no_grad():
        program = torch.export.export(
            _OneImage(model), arguments, dynamic_shapes=dynamic, strict=False
        )
    # They would be stored as a pickle, which programs are to be without.
    program.example_inputs = None
    for node in program.graph.nodes:
        # Names of folders of this machine are nobody's business.
        node.meta.pop("stack_trace", None)
    facts = {
        "width": width,
        "height": height,
        "takes_proposals": needs_proposals(model),
        "localizes": isinstance(model, Localizer),
    }
    with replacing(path) as temporary:
        torch.export.save(
            program,
            temporary,
            extra_files={FACTS: json.dumps({"entry": entry, "facts": facts})},
        )


def _load_program(path: Path) -> SavedDetector:
    program, content = read_program(path)
    entry, facts = content.get("entry"), content.get("facts")
    if not isinstance(entry, dict) or not isinstance(facts, dict):
        raise ModelFormatError(f"{path} was not written by rcnn-ext export")
    return SavedProgram(
        path=path,
        weights=dict(program.state_dict),
        program=program,
        facts=_checked_facts(path, facts),
        **read_entry(path, entry),
    )


def _checked_facts(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    kinds = {"width": int, "height": int, "takes_proposals": bool, "localizes": bool}
    if {key: type(value) for key, value in facts.items()} != kinds:
        raise ModelFormatError(
            f"{path} is damaged, or edited: the facts of its program are not {', '.join(kinds)}"
        )
    if min(facts["width"], facts["height"]) < 1:
        raise ModelFormatError(f"{path} is damaged, or edited: its images have no pixels")
    return facts
