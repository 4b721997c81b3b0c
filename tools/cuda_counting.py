"""Counts what calls of torchvision's Python code would launch on a device, by running them."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rcnn_ext.bench import suite
from rcnn_ext.bench.cases import Case, DetectionCase, ProposalCase, PyramidCase

# Views and allocations launch nothing.
# fmt: off
NO_LAUNCH = frozenset({
    "_reshape_alias", "_unsafe_view", "_with_sizes", "alias", "as_strided", "chunk", "detach",
    "empty", "empty_like", "empty_strided", "expand", "is_same_size", "lift_fresh", "narrow",
    "new_empty", "permute", "reshape", "resize_", "select", "slice", "split", "squeeze", "t",
    "transpose", "unbind", "unflatten", "unsqueeze", "view",
})
# fmt: on
# The host waits for these: their result's size or value is data. Indexing with a mask calls
# nonzero itself.
WAITS = frozenset({"nonzero", "_local_scalar_dense", "masked_select", "item", "unique2", "where"})


class Counting(TorchDispatchMode):
    """Counts what a call would launch on a device, and how often it would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = 0
        self.waits = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func._schema.name.partition("::")[2]
        indices = args[1] if name == "index" else ()
        masks = sum(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
        # where(condition) alone is nonzero; with three arguments it is an operator like others.
        self.waits += masks + (name in WAITS and not (name == "where" and len(args) > 1))
        if name not in NO_LAUNCH:
            self.launches += 1 + masks
        return func(*args, **(kwargs or {}))


def make_inputs(case: Case) -> Any:
    """Draw the inputs of a case as the benchmark does, on the CPU."""
    return case.make(0, torch.device("cpu"), torch.float32)


def cases_to_count() -> list[Case]:
    """Return the cases with a target on CUDA in which torchvision runs Python code."""
    counted = (ProposalCase, DetectionCase, PyramidCase)
    cases = suite.suite(quick=False)
    return [case for case in cases if case.targets.cuda is not None and isinstance(case, counted)]


def count_torchvision(case: Case) -> tuple[int, int]:
    """Return how many operators torchvision's call runs, and how often the host waits."""
    import torchvision

    if isinstance(case, PyramidCase):
        case = dataclasses.replace(case, channels=1)  # as many operators, and less to compute
    call = case.bind(torchvision.ops, make_inputs(case))
    boxes = torchvision.ops.boxes
    # On the CPU it loops over the classes from 1,000 boxes on; a device does so from 25,000 on.
    on_device = mock.patch.object(
        boxes, "_batched_nms_vanilla", boxes._batched_nms_coordinate_trick
    )
    with torch.no_grad(), on_device:
        call()  # sets up what later calls use again
        with Counting() as counting:
            call()
    return counting.launches, counting.waits
