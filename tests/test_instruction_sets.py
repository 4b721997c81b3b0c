"""Which instruction set the CPU kernels use, and how it is chosen."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from rcnn_ext import _extension, ops

SETS = ("baseline", "avx2", "avx512")
DISABLE = "RCNN_EXT_DISABLE_CPU_FEATURES"
# The features that the code of an instruction set is compiled for, beyond those of the set before.
FEATURES = {
    "avx2": ("avx2", "bmi", "bmi2", "fma", "f16c", "lzcnt", "popcnt"),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
}
# Features that some code uses with an instruction set that does not need them.
OPTIONAL = ("avx512bf16",)
ALL_FEATURES = (*(name for names in FEATURES.values() for name in names), *OPTIONAL)
on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or os.name == "nt",
    reason="only on x86-64 is there more than the baseline",
)


def _in_new_process(isa: str | None) -> subprocess.CompletedProcess[str]:
    chosen = ("RCNN_EXT_ISA", DISABLE)
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    if isa is not None:
        environment["RCNN_EXT_ISA"] = isa
    code = (
        "import rcnn_ext.ops; from rcnn_ext import _extension; print(_extension.instruction_set())"
    )
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )


def test_sets_ascend_from_the_baseline():
    available = _extension.instruction_sets()
    assert available
    assert available == SETS[: len(available)]


def test_best_set_is_the_default():
    assert _in_new_process(None).stdout.strip() == _extension.instruction_sets()[-1]


def test_variable_forces_a_set():
    for isa in _extension.instruction_sets():
        assert _in_new_process(isa).stdout.strip() == isa


def test_unknown_set_is_refused_by_name():
    result = _in_new_process("sse9")
    assert result.returncode != 0
    assert "RCNN_EXT_ISA: expected an instruction set that this processor has" in result.stderr
    assert "'sse9'" in result.stderr


def test_block_restores_the_set_after_an_error():
    def fail() -> None:
        with _extension.use_instruction_set("baseline"):
            assert _extension.instruction_set() == "baseline"
            raise KeyError

    before = _extension.instruction_set()
    pytest.raises(KeyError, fail)
    assert _extension.instruction_set() == before


def test_use_instruction_set_needs_a_string():
    with pytest.raises(TypeError), _extension.use_instruction_set(3):  # type: ignore[arg-type]
        pass


def _best_without(*features: str) -> str:
    """The best instruction set here that needs none of the features."""
    allowed = [
        name
        for name in _extension.instruction_sets()
        if not any(
            feature in FEATURES[below]
            for feature in features
            for below in SETS[1 : SETS.index(name) + 1]
        )
    ]
    return allowed[-1]


# Loads the module by its file: that is quick, since it needs no PyTorch.
_SEARCH = """
import importlib.machinery, importlib.util, sys
import numpy
loader = importlib.machinery.ExtensionFileLoader("_selective_search", sys.argv[1])
spec = importlib.util.spec_from_file_location("_selective_search", sys.argv[1], loader=loader)
module = importlib.util.module_from_spec(spec)
loader.exec_module(module)
image = numpy.random.default_rng(5).integers(0, 256, (37, 45, 3), dtype=numpy.uint8)
labels = module.felzenszwalb(image, 1 / 255, [0.5, 0.25], 10.0, 4)
print(module.instruction_set(), labels.tobytes().hex())
"""


def _search_without(features: str) -> tuple[str, str]:
    """Return the instruction set chosen and the labels of a small image's segments."""
    path = _extension.status()["_selective_search"].path
    finished = subprocess.run(
        [sys.executable, "-c", _SEARCH, str(path)],
        env={**os.environ, DISABLE: features},
        capture_output=True,
        text=True,
        check=True,
    )
    isa, labels = finished.stdout.split()
    return isa, labels


@on_x86
@pytest.mark.parametrize("feature", ALL_FEATURES)
def test_every_feature_is_checked(feature):
    isa, labels = _search_without(feature)
    assert isa == _best_without(feature)
    assert labels == _search_without("")[1]


@on_x86
@pytest.mark.parametrize("features", ["f16c", "avx512vl"])
def test_operators_give_the_same_without_a_feature(features, tmp_path):
    code = """
import sys, torch
from rcnn_ext import _extension, ops
maps, rois = torch.load(sys.argv[1])
torch.save(ops.roi_align(maps, rois, (5, 5)), sys.argv[1])
print(_extension.instruction_set())
"""
    maps = torch.randn(1, 19, 21, 23, generator=torch.Generator().manual_seed(3)).half()
    rois = torch.tensor([[0, 1.5, 2, 17, 14.25], [0, 3, 3, 9, 9]]).half()
    file = tmp_path / "tensors.pt"
    torch.save((maps, rois), file)
    finished = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env={**os.environ, DISABLE: features},
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.strip() == _best_without(features)
    assert torch.equal(torch.load(file), ops.roi_align(maps, rois, (5, 5)))


@on_x86
def test_unknown_feature_is_refused_by_name():
    finished = subprocess.run(
        [sys.executable, "-c", "import rcnn_ext.ops"],
        env={**os.environ, DISABLE: "f16c,sse9"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode != 0
    every = ", ".join(ALL_FEATURES)
    assert f"ValueError: {DISABLE}: expected names among ({every}), got 'sse9'" in finished.stderr
