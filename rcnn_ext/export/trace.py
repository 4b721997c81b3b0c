"""A detector as one graph of operators, which the formats of programs start from."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as shape_config

from rcnn_ext.models.core import DeployedDetector
from rcnn_ext.models.detector import Detector
from rcnn_ext.models.fast_rcnn import needs_proposals
from rcnn_ext.models.folding import fold_norms
from rcnn_ext.models.localizer import Localizer

# Sizes to trace with, no two of them equal and none 1.
_BATCH, _HEIGHT, _WIDTH, _PROPOSALS = 2, 96, 160, 7


def example_inputs(
    detector: Detector, size: tuple[int, int] | None = None
) -> tuple[torch.Tensor, ...]:
    """Return inputs of ``DeployedDetector`` to trace a detector with, on its device.

    Args:
        detector: The detector.
        size: (width, height) of the images; None takes the fixed size of a localizer, else some.
    """
    device = next(detector.parameters()).device
    channels = len(detector.transform.image_mean)
    width, height = size or detector.transform.fixed_size or (_WIDTH, _HEIGHT)
    images = torch.rand(_BATCH, channels, height, width, device=device)
    sizes = torch.tensor([[height, width], [max(1, height - 1), width]], dtype=torch.float32)
    inputs: tuple[torch.Tensor, ...] = (images, sizes.to(device))
    if needs_proposals(detector):
        corners = torch.rand(_BATCH, _PROPOSALS, 2, device=device) * min(height, width) / 2
        proposals = torch.cat((corners, corners + min(height, width) / 4), dim=-1)
        inputs += (proposals, torch.tensor([_PROPOSALS, _PROPOSALS - 1], device=device))
    return inputs


def dynamic_shapes(detector: Detector, size: tuple[int, int] | None = None) -> tuple[Any, ...]:
    """Return which dimensions of the inputs are of any length, for ``torch.export.export``.

    Args:
        detector: The detector.
        size: (width, height), where the program is to be for one size.
    """
    batch = {0: Dim.DYNAMIC}
    # A localizer is for images of one size.
    is_fixed = size is not None or isinstance(detector, Localizer)
    shapes: tuple[Any, ...] = (batch if is_fixed else batch | {2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    shapes += (batch,)
    if needs_proposals(detector):
        shapes += (batch | {1: Dim.DYNAMIC}, batch)
    return shapes


@torch.no_grad()
def trace_detector(
    detector: Detector,
    size: tuple[int, int] | None = None,
    *,
    takes_sizes: bool = True,
    strict: bool = False,
) -> ExportedProgram:
    """Record ``DeployedDetector`` as a program for batches of any size, and any height and width.

    Args:
        detector: The detector, in evaluation mode. Its batch norms are folded, in place.
        size: (width, height) of the images, where the program is to be for one size only.
        takes_sizes: Whether the program has the input ``image_sizes``; else no image of a batch is
            padded.
        strict: As for ``torch.export.export``.
    """
    # PyTorch's batch norm asks whether its input is empty, which is unknown while a program for
    # any number of RoIs is recorded.
    fold_norms(detector)
    inputs, shapes = example_inputs(detector, size), dynamic_shapes(detector, size)
    named: dict[str, torch.Tensor] = {}
    if not takes_sizes:
        # By name, since they come after what is left out.
        named = dict(zip(("proposals", "proposal_counts"), inputs[2:], strict=False))
        inputs, shapes = inputs[:1], shapes[:1] + shapes[2:]
    # Without it the sizes of the example would be remembered as other than 1, and the program would
    # refuse a picture so narrow that its coarsest map has one column.
    with shape_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(
            DeployedDetector(detector),
            inputs,
            named,
            dynamic_shapes=dict(zip(("images", *named), shapes, strict=True)) if named else shapes,
            strict=strict,
        )
