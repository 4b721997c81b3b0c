"""The hash of the native sources."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

import pytest

from rcnn_ext._source_hash import csrc_hash

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def csrc(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "csrc"
    (folder / "nms").mkdir(parents=True)
    (folder / "nms" / "nms_cpu.cpp").write_text("int a;")
    (folder / "common.h").write_text("int b;")
    return folder


def test_same_sources_same_hash(csrc: pathlib.Path, tmp_path: pathlib.Path) -> None:
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    (copy / "common.h").write_text("int b;")  # another order of creation
    (copy / "nms").mkdir()
    (copy / "nms" / "nms_cpu.cpp").write_text("int a;")
    assert csrc_hash(copy) == csrc_hash(csrc)
    assert len(csrc_hash(csrc)) == 16
    assert int(csrc_hash(csrc), 16) >= 0


def test_every_change_shows(csrc: pathlib.Path) -> None:
    seen = {csrc_hash(csrc)}
    (csrc / "common.h").write_text("int c;")
    seen.add(csrc_hash(csrc))
    (csrc / "common.h").rename(csrc / "comm.h")
    seen.add(csrc_hash(csrc))
    # The same bytes, divided otherwise between name and content.
    (csrc / "comm.h").write_text("")
    seen.add(csrc_hash(csrc))
    (csrc / "empty.h").touch()
    seen.add(csrc_hash(csrc))
    assert len(seen) == 5


def test_what_is_not_compiled_does_not_count(csrc: pathlib.Path) -> None:
    before = csrc_hash(csrc)
    (csrc / ".nms_cpu.cpp.swp").write_text("x")
    (csrc / "__pycache__").mkdir()
    (csrc / "__pycache__" / "x.pyc").write_text("x")
    assert csrc_hash(csrc) == before


def test_missing_folder(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError, match="no source folder"):
        csrc_hash(tmp_path / "none")


def test_loads_by_path_without_the_package() -> None:
    """``setup.py`` does so before anything is built."""
    path = ROOT / "rcnn_ext" / "_source_hash.py"
    spec = importlib.util.spec_from_file_location("_hash_by_path", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    spec.loader.exec_module(module)
    assert not any(name.startswith("rcnn_ext") for name in set(sys.modules) - before)
    assert module.csrc_hash(ROOT / "csrc") == csrc_hash(ROOT / "csrc")
