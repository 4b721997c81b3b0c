"""Installations that lack something: the native modules, CUDA, torchvision."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.run_python import PACKAGE, run_python

_NATIVE = (".so", ".pyd", ".dylib")


def _copy_package(folder: Path, native: bool = False) -> Path:
    """The package, as a rule without its native modules, in a folder to import it from."""
    shutil.copytree(
        PACKAGE,
        folder / "rcnn_ext",
        ignore=lambda _, names: [
            name
            for name in names
            if name == "__pycache__" or (name.endswith(_NATIVE) and not native)
        ],
    )
    return folder


# Right answers of every operator, forward and backward, against torchvision.
_CHECK_ALL = """
import torch, torchvision
torch.manual_seed(0)
torch.set_num_threads(1)
from rcnn_ext import ops


def both(function, *tensors):
    results = []
    for module in (ops, torchvision.ops):
        inputs = [t.clone().requires_grad_() for t in tensors]
        result = function(module, *inputs)
        grads = torch.autograd.grad(result.square().sum(), inputs)
        results.append([result, *grads])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


boxes = torch.rand(50, 4) * 20
boxes[:, 2:] += boxes[:, :2] + 1
scores, idxs = torch.rand(50), torch.randint(0, 3, (50,))
for name in ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"):
    both(lambda module, a, b: getattr(module, name)(a, b), boxes, boxes.flip(0) + 0.1)
assert torch.equal(ops.nms(boxes, scores, 0.4), torchvision.ops.nms(boxes, scores, 0.4))
assert torch.equal(
    ops.batched_nms(boxes.double(), scores, idxs, 0.4),
    torchvision.ops.batched_nms(boxes.double(), scores.double(), idxs, 0.4),
)
rois = torch.cat([torch.randint(0, 2, (50, 1)), boxes], dim=1)
features = torch.randn(2, 5, 12, 16)
for layout in (torch.contiguous_format, torch.channels_last):
    x = features.to(memory_format=layout)
    both(lambda module, x: module.roi_align(x, rois, (3, 4), 0.5), x)
    both(lambda module, x: module.roi_align(x, rois, 7, 0.5, 2, True), x)
    both(lambda module, x: module.roi_pool(x, rois, (3, 4), 0.5), x)
pooler = [m.MultiScaleRoIAlign(["a", "b"], 3, 2) for m in (ops, torchvision.ops)]
maps = {"a": torch.randn(1, 2, 32, 32), "b": torch.randn(1, 2, 16, 16)}
results = [p(maps, [boxes * 3], [(128, 128)]) for p in pooler]
torch.testing.assert_close(results[0], results[1])
"""

_WITHOUT_NATIVE = (
    _CHECK_ALL
    + """
import rcnn_ext
from rcnn_ext import _extension

assert rcnn_ext.__file__.startswith(sys.argv[1]), rcnn_ext.__file__
assert not ops.has_native_kernel("nms", "cpu")
status = _extension.status()
for name in ("_C", "_C_cuda", "_selective_search"):
    assert not status[name].loaded
    assert status[name].reason
    print(name, status[name].reason, sep="|")
try:
    with ops.use_backend("native"):
        pass
except RuntimeError as error:
    assert "_C" in str(error), error
else:
    raise AssertionError("there is no native backend")

# Autocast would take the reference's matrix products in bfloat16.
expected = ops.roi_align(features, rois, 7, 0.5)
with torch.autocast("cpu", dtype=torch.bfloat16):
    assert torch.equal(ops.roi_align(features, rois, 7, 0.5), expected)
    x = features.clone().requires_grad_()
    result = ops.roi_align(x, rois, 7, 0.5)
    (autocast,) = torch.autograd.grad(result.sum(), x)
x = features.clone().requires_grad_()
(plain,) = torch.autograd.grad(ops.roi_align(x, rois, 7, 0.5).sum(), x)
assert torch.equal(autocast, plain)
"""
).replace("import torch, torchvision", "import sys, torch, torchvision", 1)


@pytest.mark.usefixtures("needs_torchvision")
def test_without_native_modules(tmp_path: Path) -> None:
    output = run_python(_WITHOUT_NATIVE, str(tmp_path), path=_copy_package(tmp_path))
    reasons = dict(line.split("|") for line in output.splitlines())
    # Not what the build says that it built, since the file isn't there.
    assert "CPU kernels" not in reasons["_C"]


@pytest.mark.usefixtures("needs_torchvision")
def test_with_a_native_module_that_cannot_be_loaded(tmp_path: Path) -> None:
    _copy_package(tmp_path)
    for module in PACKAGE.glob("_C*"):
        if module.suffix in _NATIVE:
            (tmp_path / "rcnn_ext" / module.name).write_bytes(b"not a library")
    script = _CHECK_ALL + (
        "from rcnn_ext import _extension\n"
        "status = _extension.status()['_C']\n"
        "assert not status.loaded and status.path is not None\n"
        "assert 'cannot be loaded' in status.reason, status.reason\n"
    )
    run_python(script, path=tmp_path)


def test_with_a_torch_without_cuda(tmp_path: Path) -> None:
    # With a CUDA module beside it that must not even be tried.
    package = _copy_package(tmp_path, native=True) / "rcnn_ext"
    (package / "_C_cuda.abi3.so").unlink(missing_ok=True)
    (package / "_C_cuda.py").write_text("raise SystemExit('_C_cuda was imported')\n")
    script = (
        "import torch\n"
        "torch.version.cuda = None\n"
        "from rcnn_ext import _extension, ops\n"
        "status = _extension.status()\n"
        "assert status['_C'].loaded, status['_C'].reason\n"
        "assert not status['_C_cuda'].loaded\n"
        "assert 'has no CUDA' in status['_C_cuda'].reason, status['_C_cuda'].reason\n"
        "assert ops.has_native_kernel('nms', 'cpu')\n"
        "assert not ops.has_native_kernel('nms', 'cuda')\n"
    )
    run_python(script, path=tmp_path)


_WITHOUT_TORCHVISION = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocked())
import torch
from rcnn_ext import ops
from rcnn_ext.ops import *  # what there is

boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]], requires_grad=True)
scores = torch.tensor([0.9, 0.8, 0.7])
assert nms(boxes, scores, 0.5).tolist() == [0, 2]
assert batched_nms(boxes, scores, torch.tensor([0, 1, 0]), 0.5).tolist() == [0, 1, 2]
for measure in (box_iou, generalized_box_iou, distance_box_iou, complete_box_iou):
    measure(boxes, boxes).sum().backward()
for fmt in ("xyxy", "xywh", "cxcywh"):
    assert box_iou(boxes, boxes, fmt=fmt).shape == (3, 3)
features = torch.rand(1, 2, 32, 32)
assert roi_align(features, [boxes], 2).shape == (3, 2, 2, 2)
assert roi_pool(features, [boxes], 2).shape == (3, 2, 2, 2)
assert RoIAlign(2, 1.0, 2)(features, [boxes]).shape == (3, 2, 2, 2)
assert RoIPool(2, 1.0)(features, [boxes]).shape == (3, 2, 2, 2)
pooler = MultiScaleRoIAlign(["a", "b"], 2, 2)
maps = {"a": features, "b": features[..., ::2, ::2]}
assert pooler(maps, [boxes], [(64, 64)]).shape == (3, 2, 2, 2)
with use_backend("reference"):
    assert nms(boxes, scores, 0.5).tolist() == [0, 2]
assert "nms" in dir(ops)
assert not hasattr(ops, "_private")
try:
    ops.sigmoid_focal_loss
except ModuleNotFoundError as error:
    assert error.name == "torchvision", error
else:
    raise AssertionError("torchvision's own operators need torchvision")
assert "torchvision" not in sys.modules
"""


def test_without_torchvision() -> None:
    run_python(_WITHOUT_TORCHVISION)


def test_torchvision_is_not_imported_before_it_is_needed() -> None:
    run_python("import sys\nfrom rcnn_ext import ops\nassert 'torchvision' not in sys.modules\n")


@pytest.mark.parametrize("threads", [1, 4])
def test_operators_from_several_threads_at_once(threads: int) -> None:
    # Imports in threads, too: the first import defines the operators.
    script = (
        "import sys, threading\n"
        "import torch\n"
        "results = []\n"
        "def work():\n"
        "    from rcnn_ext import ops\n"
        "    torch.manual_seed(0)\n"
        "    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])\n"
        "    for _ in range(50):\n"
        "        keep = ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)\n"
        "        pooled = ops.roi_align(torch.ones(1, 2, 32, 32), [boxes], 2)\n"
        "    results.append((keep.tolist(), pooled.sum().item()))\n"
        "threads = [threading.Thread(target=work) for _ in range(int(sys.argv[1]))]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "assert len(results) == len(threads) and len(set(map(str, results))) == 1, results\n"
        "assert results[0][0] == [0, 2]\n"
    )
    run_python(script, str(threads))
