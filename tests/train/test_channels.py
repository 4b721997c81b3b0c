"""Training, evaluation and detection on images of other than three channels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lightning", reason="lightning comes with the extra train")
pytest.importorskip("tifffile", reason="tifffile comes with the extra tiff")

import tifffile

from rcnn_ext.cli import main
from rcnn_ext.predict.checkpoint import load_checkpoint
from tests.helpers.made_data import as_coco

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = (
    "model.min_size=64",
    "model.max_size=64",
    "model.pool_size=2",
    "data.batch_size=2",
    "data.workers=0",
    "runtime.device=cpu",
    "runtime.loggers=[csv]",
)


def as_tiffs(folder, channels):
    """COCO data whose pictures have as many channels: red, green and blue in turns."""
    data = as_coco(folder)
    for path in sorted(data.rglob("*.png")):
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        pixels = pixels[:, :, np.arange(channels) % 3]
        # As a multispectral camera writes them; one channel is a gray image.
        layout = {"planarconfig": "contig"} if channels > 1 else {}
        pixels = pixels[:, :, 0] if channels == 1 else pixels
        tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="minisblack", **layout)
        path.unlink()
    for path in data.rglob("*.json"):
        content = json.loads(path.read_text())
        for image in content["images"]:
            image["file_name"] = image["file_name"].replace(".png", ".tif")
        path.write_text(json.dumps(content))
    return data


@pytest.mark.parametrize("channels", [1, 5])
def test_pictures_of_other_channels(tmp_path, channels):
    data, run, found = as_tiffs(tmp_path / "data", channels), tmp_path / "run", tmp_path / "found"
    train = ["train", "faster_rcnn_synthetic", "--data", str(data), "--out", str(run)]
    more = ("data.format=coco", f"data.channels={channels}", f"model.in_channels={channels}")
    assert main([*train, "--max-steps", "2", *SMALL, *more, "data.measure_mean_std=true"]) == 0
    saved = load_checkpoint(run)
    assert saved.weights["backbone.body.conv1.weight"].shape[1] == channels
    assert len(saved.recipe.model.image_mean) == channels
    assert main(["eval", str(run), "--data", str(data)]) == 0
    if channels == 5:
        program = tmp_path / "detector.pt2"
        assert main(["export", str(run), "--out", str(program), "--size", "64x64"]) == 0
    picture = next(iter(sorted(data.rglob("*.tif"))))
    assert main(["detect", str(run), str(picture), "--out", str(found)]) == 0


def test_weights_of_rgb_are_adapted_to_them(tmp_path, tiny_run, capsys):
    data, run = as_tiffs(tmp_path / "data", 5), tmp_path / "run"
    train = ["train", "faster_rcnn_synthetic", "--data", str(data), "--out", str(run)]
    more = ("data.format=coco", "data.channels=5", "model.in_channels=5")
    more = (*more, f"model.weights={tiny_run.out}", "model.norm_layer=batch")
    assert main([*train, "--max-steps", "1", *SMALL, *tiny_run.overrides, *more]) == 0
    first = "1 adapted, 0 new, 0 unused"
    assert first in capsys.readouterr().out
