"""Access to the true ``torchvision.ops``, and to its modules under the name of ``rcnn_ext.ops``."""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from rcnn_ext.ops import _torchvision_binary

_HERE, _THERE = "rcnn_ext.ops", "torchvision.ops"


_loaded: list[ModuleType] = []


def torchvision_ops() -> ModuleType:
    """Import ``torchvision.ops``, also where ``sys.modules`` holds ``rcnn_ext.ops`` in its place.

    The module is kept, so that ``sys.modules["torchvision.ops"] = rcnn_ext.ops`` at any later time
    does not make this package ask itself for what it does not have.

    Returns:
        The module of torchvision.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    if not _loaded:
        _torchvision_binary.install()
        with _original_in_place():
            _loaded.append(importlib.import_module(_THERE))
    return _loaded[0]


@contextlib.contextmanager
def _original_in_place() -> Iterator[None]:
    """Let ``import torchvision.ops`` find the original for a block of code."""
    if not _is_replaced():
        yield
        return
    replacement = sys.modules.pop(_THERE)
    if _loaded:
        sys.modules[_THERE] = _loaded[0]
    before = getattr(sys.modules.get("torchvision"), "ops", replacement)
    try:
        yield
    finally:
        sys.modules[_THERE] = replacement
        # Importing a submodule sets the attribute of its package.
        if "torchvision" in sys.modules:
            vars(sys.modules["torchvision"])["ops"] = before


def _is_replaced() -> bool:
    here = sys.modules.get(_HERE)
    return here is not None and sys.modules.get(_THERE) is here


class _Alias(importlib.abc.Loader):
    """Load a module by putting one that is loaded in its place."""

    def __init__(self, original: ModuleType) -> None:
        self.original = original

    def exec_module(self, module: ModuleType) -> None:
        """Replace the new, empty module."""
        sys.modules[module.__name__] = self.original


class _Finder(importlib.abc.MetaPathFinder):
    """Find ``rcnn_ext.ops.misc`` and its like: the modules of torchvision.

    Also ``torchvision.ops.misc`` where ``rcnn_ext.ops`` stands in the place of ``torchvision.ops``.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the specification of a module of ``torchvision.ops``, else ``None``."""
        parent, _, name = fullname.rpartition(".")
        if parent == _HERE:
            if importlib.machinery.PathFinder.find_spec(fullname, path) is not None:
                return None
        elif parent != _THERE or not _is_replaced():
            return None
        try:
            torchvision_ops()
            with _original_in_place():
                original = importlib.import_module(f"{_THERE}.{name}")
        except ModuleNotFoundError:
            return None
        # For a name that was imported meanwhile Python would load the file once more.
        sys.modules.pop(fullname, None)
        return importlib.machinery.ModuleSpec(fullname, _Alias(original))


class _Package(ModuleType):
    """``rcnn_ext.ops``, whose functions are not hidden by the modules of the same name.

    In torchvision ``ops.ps_roi_align`` is a function, although there is a module
    ``torchvision.ops.ps_roi_align``; Python would set the attribute to the module when somebody
    imports that.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and value.__name__ == f"{_THERE}.{name}":
            value = getattr(torchvision_ops(), name)
        super().__setattr__(name, value)


def install_finder() -> None:
    """Make the modules of ``torchvision.ops`` importable from ``rcnn_ext.ops``, once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        # First: a parent that was replaced leads to the files of this package.
        sys.meta_path.insert(0, _Finder())
    sys.modules[_HERE].__class__ = _Package
