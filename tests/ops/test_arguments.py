"""A call with an argument of a wrong kind, or without the memory for it, says what was wrong."""

from __future__ import annotations

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch

from rcnn_ext import ops
from tests.attack.calls import public_operators, raw_operators
from tests.helpers.backends import running

OPERATORS = {operator.name: operator for operator in public_operators()}
RAW = {operator.plain_name: operator for operator in raw_operators()}
WRONG = {
    "a string": ("boxes", r"'boxes' \(a str\)"),
    "a number": (3, r"3 \(a int\)"),
    "None": (None, "None"),
    "an array": (np.zeros((4, 4)), r"a NumPy array of shape \[4, 4\], of which torch.from_numpy"),
    "numbers": ([1.0, 2.0], "a list with a float at index 0"),
    "a dict": ({}, "a dict"),
}
# Where None is a value.
OPTIONAL = {("non_max_merging", "labels"), ("non_max_merging", "idxs")}


def call(name, **changes):
    operator = OPERATORS[name]
    return operator.function(**operator.arguments | changes)


def _tensor_arguments():
    for name, operator in OPERATORS.items():
        for argument, about in inspect.signature(operator.function).parameters.items():
            if "Tensor" in str(about.annotation):
                yield name, argument


@pytest.mark.parametrize(("name", "argument"), list(_tensor_arguments()))
@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_tensor_is_a_type_error(name, argument, kind):
    value, shown = WRONG[kind]
    if value is None and (name, argument) in OPTIONAL:
        return
    if kind == "a dict" and OPERATORS[name].kinds[argument].startswith("List"):
        return  # It has no elements, as an empty list.
    with pytest.raises(TypeError, match=rf"^{name}: expected {argument} to be .*, got {shown}"):
        call(name, **{argument: value})


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_what_is_no_number_is_a_type_error(name):
    operator = OPERATORS[name]
    for argument, kind in operator.kinds.items():
        if kind in ("float", "int", "List[float]"):
            for value in (None, "x", [None], {}):
                with pytest.raises(TypeError, match=rf"^{name}: expected {argument} to be a"):
                    call(name, **{argument: value})


LAYOUTS = {
    "sparse": lambda tensor: tensor.to_sparse(),
    "CSR": lambda tensor: tensor.reshape(len(tensor), -1).to_sparse_csr(),
    "MKL-DNN": lambda tensor: tensor.float().to_mkldnn(),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.quint8),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor, tensor]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_a_tensor_that_is_not_dense_is_refused_by_name(name, layout):
    operator = OPERATORS[name]
    for argument, value in operator.arguments.items():
        if isinstance(value, torch.Tensor):
            message = rf"^{name}: expected {argument} to be a dense tensor, got a"
            with pytest.raises(RuntimeError, match=message):
                call(name, **{argument: LAYOUTS[layout](value)})


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize("name", sorted(RAW))
def test_freed_storage_is_refused_by_name(name, implementation):
    operator = RAW[name]
    with running(implementation):
        for argument, value in operator.arguments.items():
            for lost in (1.0, 0.5):
                if isinstance(value, torch.Tensor):
                    tensor = value.clone()
                    changed = tensor
                elif operator.kinds[argument] == "List[Tensor]":
                    tensor = value[-1].clone()
                    changed = [*value[:-1], tensor]
                else:
                    continue
                storage = tensor.untyped_storage()
                storage.resize_(int(storage.nbytes() * (1 - lost)))
                message = rf"^{name}: expected {argument} with all its elements in its storage"
                with pytest.raises(RuntimeError, match=message):
                    operator.function(**operator.arguments | {argument: changed})


@pytest.mark.parametrize("name", sorted(RAW))
def test_a_raw_operator_names_a_tensor_that_is_none(name):
    operator = RAW[name]
    for argument, kind in operator.kinds.items():
        if kind == "Tensor":
            with pytest.raises((RuntimeError, TypeError), match=rf"^{name}: .*got None"):
                operator.function(**operator.arguments | {argument: None})
    nothing = {
        argument: None if kind == "Tensor" else operator.arguments[argument]
        for argument, kind in operator.kinds.items()
        if not kind.startswith("List[Tensor")
    }
    if nothing.keys() == operator.kinds.keys():
        with pytest.raises((RuntimeError, TypeError), match=rf"^{name}: .*got None"):
            operator.function(**nothing)


TOO_LARGE = {
    "bins": lambda: call("roi_align", output_size=30_000, boxes=torch.zeros(40_000, 5)),
    "roi_pool": lambda: call("roi_pool", output_size=30_000, boxes=torch.zeros(40_000, 5)),
    "pairs": lambda: call(
        "box_iou",
        boxes1=torch.zeros(1, 4).expand(10**8, 4),
        boxes2=torch.zeros(1, 4).expand(10**8, 4),
    ),
    "outputs": lambda: call("nms_padded", max_output=2**50),
    "overflow": lambda: call("nms_padded", max_output=2**62),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_result_that_no_memory_holds_is_refused_with_its_bytes(name, capfd):
    with pytest.raises(MemoryError, match=r"^\w+: .*a result of shape \[.*\] would take \d+ bytes"):
        TOO_LARGE[name]()
    # PyTorch would print frames of C++.
    assert capfd.readouterr().err == ""


def test_more_bins_than_indices_are_refused():
    for name in ("roi_align", "roi_pool"):
        for implementation in ("native", "reference"):
            with (
                running(implementation),
                pytest.raises(RuntimeError, match=rf"^{name}: .* at most 2\^31 - 1 bins, got"),
            ):
                call(name, output_size=2**17, input=torch.zeros(2, 0, 8, 8))


def test_without_channels_any_number_of_bins_is_no_work():
    """In a process of its own: it took gigabytes, and minutes."""
    script = """
import resource, torch
from rcnn_ext import ops
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
rois = torch.tensor([[0.0, 0, 0, 7, 7]])
features = torch.zeros(1, 0, 8, 8)
for size in ((10**9, 1), (1, 10**9)):
    for pool in (ops.roi_align, ops.roi_pool):
        assert pool(features, rois, size).shape == (1, 0, *size)
    assert ops.multiscale_roi_align([features], rois, size, [1.0]).shape == (1, 0, *size)
    grad = torch.zeros(1, 0, *size)
    shape = torch.ops.rcnn_ext.roi_align_backward(
        grad, rois, 1.0, *size, 1, 0, 8, 8, 2, False, False
    ).shape
    assert shape == (1, 0, 8, 8)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=200)


@pytest.mark.parametrize("fmt", ["xywh", "cxcywh"])
@pytest.mark.parametrize("name", ["box_iou", "box_ios"])
def test_boxes_of_another_shape_are_named_before_they_are_converted(name, fmt):
    for boxes in (torch.rand(3, 5), torch.rand(4, 3), torch.tensor(1.0)):
        for argument in ("boxes1", "boxes2"):
            with pytest.raises(RuntimeError, match=f"^{name}: expected boxes of shape "):
                call(name, fmt=fmt, **{argument: boxes})


def test_a_fake_kernel_names_a_tensor_that_is_none():
    for name, operator in RAW.items():
        tensors = [argument for argument, kind in operator.kinds.items() if kind == "Tensor"]
        if len(tensors) > 1:
            meta = {argument: operator.arguments[argument].to("meta") for argument in tensors}
            with pytest.raises(TypeError, match=rf"^{name}: expected {tensors[0]} to be a tensor"):
                operator.function(**operator.arguments | meta | {tensors[0]: None})


def test_modules_name_themselves():
    features = {"0": torch.rand(1, 2, 8, 8), "1": torch.rand(1, 2, 4, 4)}
    pooler = ops.MultiScaleRoIAlign(["0", "1"], 3, 2)
    boxes, shapes = [torch.tensor([[0.0, 0, 8, 8]])], [(16, 16)]
    assert pooler(features, boxes, shapes).shape == (1, 2, 3, 3)
    for arguments, argument in (
        ((None, boxes, shapes), "x"),
        (({"0": 3, "1": 4}, boxes, shapes), "x"),
        ((features, None, shapes), "boxes"),
        ((features, [None], shapes), "boxes"),
        ((features, boxes, None), "image_shapes"),
        ((features, boxes, [None]), "image_shapes"),
    ):
        with pytest.raises(TypeError, match=rf"^MultiScaleRoIAlign: expected {argument} to be"):
            pooler(*arguments)
    empty = {"0": torch.rand(1, 2, 8, 0), "1": torch.rand(1, 2, 4, 0)}
    with pytest.raises((RuntimeError, ValueError), match=r"^\w+: expected"):
        pooler({name: of[..., :0, :] for name, of in empty.items()}, boxes, shapes)
    with pytest.raises((RuntimeError, ValueError), match=r"^\w+: expected"):
        pooler(features, boxes, [(0, 0)])


def test_errors_that_say_it_are_left_alone():
    with pytest.raises(IndexError, match=r"roi_align: rois\[0, 0\] is 5, not a batch index"):
        call("roi_align", boxes=torch.tensor([[5.0, 0, 0, 1, 1]]))
    with pytest.raises(ValueError, match="soft_nms: expected method 'linear' or 'gaussian'"):
        call("soft_nms", method="cubic")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'iou_threshold'"):
        ops.nms(torch.zeros(1, 4), torch.zeros(1))


@pytest.mark.parametrize("name", ["roi_align", "roi_pool", "box_iou"])
def test_tensors_of_inference_mode_that_autograd_would_save(name: str) -> None:
    with torch.inference_mode():
        rois = torch.tensor([[0.0, 0, 0, 4, 4]])
        boxes = rois[None, :, 1:].clone()
    arguments = {
        "roi_align": ("rois", (torch.rand(1, 1, 8, 8), rois, 1.0, 2, 2, 2, False)),
        "roi_pool": ("rois", (torch.rand(1, 1, 8, 8), rois, 1.0, 2, 2)),
        "box_iou": ("boxes2", (torch.rand(1, 1, 4), boxes, 0, 1e-7)),
    }
    argument, values = arguments[name]
    values[0].requires_grad_()
    with pytest.raises(RuntimeError, match=f"^{name}: expected {argument} to be a tensor that"):
        getattr(torch.ops.rcnn_ext, name)(*values)
