from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.config import load_recipe
from rcnn_ext.data import make_synthetic
from rcnn_ext.data.splits import open_split
from rcnn_ext.train.resolve import with_measured_channels

pytest.importorskip("yaml", reason="PyYAML comes with the extra train")


def test_measured_channels_become_part_of_the_model(tmp_path):
    overrides = ["data.synthetic.train=3", "data.synthetic.val=1", "data.synthetic.size=32"]
    recipe = load_recipe("faster_rcnn_synthetic", overrides)
    make_synthetic(tmp_path / "data", recipe.data.synthetic)
    annotations = open_split(recipe.data, tmp_path / "data", "train")
    measured = with_measured_channels(recipe, annotations)
    pixels = np.concatenate(
        [np.asarray(Image.open(record.path)).reshape(-1, 3) for record in annotations.images]
    )
    np.testing.assert_allclose(measured.model.image_mean, pixels.mean(axis=0) / 255, atol=1e-6)
    np.testing.assert_allclose(measured.model.image_std, pixels.std(axis=0) / 255, atol=1e-6)
    assert recipe.model.image_mean is None
