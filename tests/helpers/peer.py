"""torchvision, to compare with, where it can be imported.

There is no torchvision for every torch: under a CPU-only torch, one built for CUDA fails on import.
The operators don't need it, so then only the tests that use it are skipped.
"""

from __future__ import annotations

from typing import Any, NoReturn

import pytest


class _Missing:
    def __init__(self, why: Exception) -> None:
        self._why = why

    def __getattr__(self, name: str) -> NoReturn:
        if name not in ("ops", "tv_tensors"):  # pytest looks for marks and fixtures everywhere
            raise AttributeError(name)
        reason = f"torchvision can't be imported: {self._why}"
        pytest.skip(reason, allow_module_level=True)


torchvision: Any
try:
    import torchvision
    import torchvision.tv_tensors
except (ImportError, RuntimeError) as error:
    torchvision = _Missing(error)
