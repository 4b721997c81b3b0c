"""The tests that tools/test_compat.py copies away from the source find all that they import."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def load_tool():
    spec = importlib.util.spec_from_file_location(
        "test_compat_tool", ROOT / "tools" / "test_compat.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_copied_tests_import_only_what_was_copied(tmp_path):
    load_tool().copy_tests(tmp_path)
    assert (tmp_path / "pyproject.toml").is_file()
    files = list((tmp_path / "tests").rglob("*.py"))
    assert {"test_nms.py", "conftest.py", "backends.py"} <= {path.name for path in files}
    imported = set()
    for path in files:
        imported |= set(re.findall(r"^\s*from (tests[\w.]*) import", path.read_text(), re.M))
    assert "tests.helpers.backends" in imported
    for module in imported:
        place = tmp_path.joinpath(*module.split("."))
        assert place.is_dir() or place.with_suffix(".py").is_file(), module
