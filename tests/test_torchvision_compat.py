"""torchvision whose binary does not load, on the operators of this package."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from rcnn_ext import torchvision_compat
from tests.helpers.peer import torchvision
from tests.helpers.run_python import PACKAGE, run_python

# Runs with torchvision's binary broken; also by tools/test_compat.py, beside a CPU-only torch.
CHECKS = Path(__file__).parent / "helpers" / "without_binary.py"


@pytest.fixture(scope="module")
def without_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import this package and torchvision from, whose binary is no library."""
    folder = tmp_path_factory.mktemp("without_binary")
    original = Path(torchvision.__file__).parent
    (folder / "torchvision").mkdir()
    for path in original.iterdir():
        copy = folder / "torchvision" / path.name
        if path.name.startswith("_C"):
            copy.write_bytes(b"no library")
        elif path.is_dir():
            shutil.copytree(path, copy, copy_function=os.symlink)
        else:
            # A module finds its binary beside the file itself.
            shutil.copy(path, copy)
    (folder / "rcnn_ext").symlink_to(PACKAGE)
    return folder


def test_torchvision_alone_fails(without_binary: Path) -> None:
    run_python(
        "try:\n"
        "    import torchvision\n"
        "except RuntimeError as error:\n"
        "    assert 'operator torchvision::nms does not exist' in str(error)\n"
        "else:\n"
        "    raise AssertionError(torchvision.__file__)\n",
        path=without_binary,
    )


def test_torchvision_runs_on_our_operators(without_binary: Path) -> None:
    assert run_python(CHECKS, path=without_binary).strip().endswith("all checks passed")


_PARTS = """
import os, sys
import torch  # once, before the children

for part in ("models", "data", "predict.predictor", "ops.misc"):
    child = os.fork()
    if child == 0:
        import importlib
        importlib.import_module(f"rcnn_ext.{part}")
        import rcnn_ext.torchvision_compat, torchvision
        os._exit(0 if "_C" in rcnn_ext.torchvision_compat.reason() else 1)
    assert os.waitpid(child, 0)[1] == 0, part
"""


def test_parts_of_the_package_import_by_themselves(without_binary: Path) -> None:
    run_python(_PARTS, path=without_binary)


def test_after_an_import_that_failed(without_binary: Path) -> None:
    run_python(
        "try:\n"
        "    import torchvision\n"
        "except RuntimeError:\n"
        "    import rcnn_ext.torchvision_compat\n"
        "import torch, torchvision\n"
        "boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9]])\n"
        "assert torchvision.ops.nms(boxes, torch.ones(2), 0.5).tolist() == [0]\n"
        "map = torch.ones(1, 1, 9, 9, requires_grad=True)\n"
        "torchvision.ops.roi_align(map, [boxes], 2).sum().backward()\n"
        "assert map.grad.sum() > 0\n",
        path=without_binary,
    )


def test_refuses_where_the_binary_loads() -> None:
    assert torchvision.extension._has_ops()
    assert not torchvision_compat.install()
    assert torchvision_compat.reason() is None
    run_python(
        "import rcnn_ext.torchvision_compat as compat\n"
        "assert compat.reason() is None and not compat.install()\n"
        "import torch, torchvision\n"
        "table = torch._C._dispatch_dump_table('torchvision::nms')\n"
        "assert 'CompositeExplicitAutograd[alias]' not in table\n"
    )
