"""Made images, and what the fixtures hand out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

PackageSearch = Callable[..., tuple[np.ndarray, list[dict[str, Any]]]]


def smooth_noise(seed: int, height: int, width: int) -> np.ndarray:
    """An image with regions: coarse noise, enlarged, and fine noise on it."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(
        random.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    )
    image = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    return np.clip(image + random.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)
