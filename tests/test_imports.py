"""``import rcnn_ext``: its parts by name, for people, editors and type checkers, and its cost."""

from __future__ import annotations

import os
import types
from pathlib import Path

import pytest

import rcnn_ext
from tests.helpers.run_python import PACKAGE, run_python

PARTS = ("data", "models", "onnx", "ops", "selective_search", "train")


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_attributes(name: str) -> None:
    part = getattr(rcnn_ext, name)
    assert isinstance(part, types.ModuleType)
    assert part.__name__ == f"rcnn_ext.{name}"


def test_load_is_the_function_and_predictor_the_class() -> None:
    from rcnn_ext import Predictor, load
    from rcnn_ext.predict.load import load as expected
    from rcnn_ext.predict.predictor import Predictor as ExpectedPredictor

    assert load is rcnn_ext.load is expected
    assert Predictor is rcnn_ext.Predictor is ExpectedPredictor


def test_names() -> None:
    assert set(rcnn_ext.__all__) == {"__version__", "accelerate", "load", "Predictor", *PARTS}
    assert dir(rcnn_ext) == sorted(rcnn_ext.__all__)
    with pytest.raises(AttributeError, match="module 'rcnn_ext' has no attribute 'lod'"):
        rcnn_ext.lod  # noqa: B018
    with pytest.raises(ImportError, match="lod"):
        exec("from rcnn_ext import lod")


def test_package_alone_imports_no_part() -> None:
    run_python(
        "import sys, rcnn_ext\n"
        "assert not [name for name in sys.modules if name.startswith('rcnn_ext.')]\n"
        "assert not {'torch', 'numpy', 'torchvision'} & {*sys.modules}\n"
        "rcnn_ext.ops.nms\n"
        "assert not [name for name in sys.modules if name.startswith('rcnn_ext.models')]\n"
    )


def test_operators_import_nothing_but_torch() -> None:
    run_python(
        "import sys, torch\n"
        "before = {*sys.modules}\n"
        "import rcnn_ext.ops\n"
        "new = {name.partition('.')[0] for name in {*sys.modules} - before}\n"
        "assert new - {*sys.stdlib_module_names} == {'rcnn_ext'}, new\n"
    )


# CPU time: the wall clock would also measure what else the machine does. The best of several
# children of one process that has imported torch, which takes seconds.
_IMPORT_TIME = """
import os, time
import torch

times = []
for _ in range(5):
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        start = time.process_time()
        import rcnn_ext.ops
        os.write(writable, str(time.process_time() - start).encode())
        os._exit(0)
    os.waitpid(child, 0)
    times.append(float(os.read(readable, 100)))
print(min(times))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_operators_import_in_a_tenth_of_a_second() -> None:
    assert float(run_python(_IMPORT_TIME)) < 0.1


_EXAMPLE = """
import rcnn_ext
from rcnn_ext.ops import boxes, sigmoid_focal_loss

reveal_type(rcnn_ext.ops.nms)
reveal_type(rcnn_ext.models.fast_rcnn)
reveal_type(rcnn_ext.selective_search.selective_search)
reveal_type(rcnn_ext.data.detect_format)
reveal_type(rcnn_ext.load)
rcnn_ext.lod
rcnn_ext.ops.hard_nms
"""

_EXPECTED = (
    'note: Revealed type is "def (boxes: Any, scores: Any, iou_threshold: float) -> Any"',
    'note: Revealed type is "def (backbone: ',
    'note: Revealed type is "def (image: ',
    'note: Revealed type is "def (root: ',
    'note: Revealed type is "def (path_or_name: ',
    'error: Module has no attribute "lod"; maybe "load"?',
    'error: Module has no attribute "hard_nms"',
)

# Other packages count as unknown: analyzing torch would take minutes.
_CONFIG = """
[mypy]
strict = true
follow_imports = silent
ignore_missing_imports = true
[mypy-torch.*,torchvision.*,numpy.*]
follow_imports = skip
"""


def test_type_checkers_see_what_is_lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api = pytest.importorskip("mypy.api")
    example, config = tmp_path / "example.py", tmp_path / "mypy.ini"
    example.write_text(_EXAMPLE)
    config.write_text(_CONFIG)
    monkeypatch.setenv("MYPYPATH", str(PACKAGE.parent))
    monkeypatch.chdir(tmp_path)
    report, errors, status = api.run(
        ["--config-file", str(config), "--cache-dir", str(tmp_path / "cache"), str(example)]
    )
    assert status == 1, errors
    *lines, _ = report.splitlines()
    assert len(lines) == len(_EXPECTED), report
    for line, expected in zip(lines, _EXPECTED, strict=True):
        assert expected in line, report
