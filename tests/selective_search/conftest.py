"""Images to search, and the package to compare with."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.made_images import PackageSearch, smooth_noise

COCO = Path(__file__).parents[3] / "shared" / "data" / "coco"


@pytest.fixture
def image() -> np.ndarray:
    return smooth_noise(0, 60, 80)


@pytest.fixture
def coco_images() -> list[np.ndarray]:
    """Three photographs, cut to keep the package's time short."""
    paths = sorted(COCO.rglob("*.jpg"))
    if not paths:
        pytest.skip(f"no photographs at {COCO.parent.name}/{COCO.name} beside the repository")
    return [np.asarray(Image.open(path).convert("RGB"))[:200, :240] for path in paths[:60:20]]


class _StableNumpy:
    """NumPy, but argsort keeps the order of equal values."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def argsort(self, values: np.ndarray) -> np.ndarray:
        return np.argsort(values, kind="stable")


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageSearch]:
    """The package's search, with edges of equal cost in their own order.

    NumPy's default sort orders them as the processor's instruction set has it.
    """
    selectivesearch = pytest.importorskip("selectivesearch")
    from skimage.segmentation import _felzenszwalb_cy

    monkeypatch.setattr(_felzenszwalb_cy, "np", _StableNumpy())
    with warnings.catch_warnings():
        # Of floats, of many channels and of a version to come; none is about the results here.
        warnings.simplefilter("ignore")
        yield selectivesearch.selective_search
