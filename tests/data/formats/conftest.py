from __future__ import annotations

import pytest
from PIL import Image


@pytest.fixture
def write_csv(tmp_path):
    """Write a CSV file beside three pictures of 40x20 pixels in ``images``, and return its path."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (40, 20)).save(tmp_path / "images" / f"{name}.jpg")

    def write(text, name="train.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8-sig")
        return path

    return write
