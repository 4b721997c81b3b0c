"""Pictures larger than a tile are searched tile by tile, and what was found is merged."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rcnn_ext.cli import main
from rcnn_ext.data.images.reader import ImageReader
from rcnn_ext.errors import UserError
from rcnn_ext.models import fast_rcnn, localizer
from rcnn_ext.predict.predictor import Predictor
from rcnn_ext.predict.tiles import Tiling
from tests.helpers.corner_model import CLASSES


class Blobs(nn.Module):
    """Find the box around the white pixels of each image, and nothing in images that are larger.

    Attributes:
        sizes: Height and width of the images of each batch.
    """

    def __init__(self, max_side=64, *, masks=False):
        super().__init__()
        self.sizes = []
        self.max_side = max_side
        self.masks = masks
        self.eval()

    def forward(self, images):
        self.sizes.append([tuple(image.shape[1:]) for image in images])
        return [self.find(image) for image in images]

    def find(self, image):
        assert image.dtype == torch.float32
        y, x = (image[0] == 1).nonzero(as_tuple=True)
        seen = len(x) > 0 and max(image.shape) <= self.max_side
        box = [[x.min(), y.min(), x.max() + 1, y.max() + 1]] if seen else torch.zeros(0, 4)
        # The better, the more of it is in the image.
        found = {
            "boxes": torch.as_tensor(box, dtype=torch.float32),
            "labels": torch.ones(int(seen), dtype=torch.int64),
            "scores": torch.full((int(seen),), 0.3 + len(x) / 20_000),
        }
        if self.masks:
            found["masks"] = image[:1][None][: int(seen)]
        return found


def with_squares(width, height, *boxes):
    picture = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        picture[y1:y2, x1:x2] = 255
    return picture


@pytest.mark.parametrize("tile", [(64, 64), (50, 30), (640, 20)])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("size", [(200, 130), (65, 64), (20, 500)])
def test_tiles_cover_a_picture_and_are_of_one_size(tile, overlap, size):
    tiling = Tiling.of(tile, overlap)
    width, height = size
    covered = np.zeros((height, width), int)
    windows = tiling.windows(height, width)
    for x1, y1, x2, y2 in windows:
        assert (x2 - x1, y2 - y1) == (min(tile[0], width), min(tile[1], height))
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        covered[y1:y2, x1:x2] += 1
    assert covered.min() >= 1
    assert len(set(windows)) == len(windows)
    starts = sorted({x1 for x1, *_ in windows})
    assert all(
        b - a <= tile[0] * (1 - overlap) + 1 for a, b in zip(starts, starts[1:], strict=False)
    )


def test_an_object_on_a_border_is_one_detection_of_its_whole_extent():
    # Of the tiles 0-64, 48-112, ..., two have parts of the first square; the second is in one.
    picture = with_squares(200, 64, (40, 10, 80, 40), (170, 5, 190, 25))
    model = Blobs()
    found = Predictor(model, CLASSES).predict(
        picture, tile=64, overlap=0.25, batch_size=3, whole_picture=False
    )
    assert model.sizes == [[(64, 64)] * 3, [(64, 64)]]
    assert sorted(found.boxes.tolist()) == [[40, 10, 80, 40], [170, 5, 190, 25]]
    assert found.names == ["cat", "cat"]
    assert found.scores[0] >= found.scores[1]
    assert found.image_size == (64, 200)


def test_the_whole_picture_is_searched_too_and_low_scores_do_not_merge():
    picture = with_squares(100, 100, (10, 10, 90, 90))
    model = Blobs(max_side=1000)
    found = Predictor(model, CLASSES).predict(picture, tile=64)
    assert model.sizes[-1] == [(100, 100)]
    assert found.boxes.tolist() == [[10, 10, 90, 90]]
    assert len(Predictor(model, CLASSES).predict(picture, tile=64, min_score=1.0)) == 0


def test_small_pictures_are_not_cut_and_order_is_kept(tmp_path):
    small, large = with_squares(40, 20, (5, 5, 10, 10)), with_squares(100, 20, (70, 5, 75, 10))
    Image.fromarray(large).save(tmp_path / "large.png")
    images = [small, tmp_path / "large.png", small]
    found = Predictor(Blobs(), CLASSES).predict(images, tile=64)
    expected = [[[5, 5, 10, 10]], [[70, 5, 75, 10]], [[5, 5, 10, 10]]]
    assert [one.boxes.tolist() for one in found] == expected


def test_masks_of_parts_are_joined():
    picture = with_squares(100, 64, (40, 10, 80, 40))
    model = Predictor(Blobs(masks=True), CLASSES)
    found = model.predict(picture, tile=64, whole_picture=False)
    assert found.masks.shape == (1, 64, 100)
    np.testing.assert_array_equal(found.masks[0].numpy(), picture[:, :, 0] > 0)
    assert model.predict(with_squares(100, 64), tile=64).masks.shape == (0, 64, 100)


def test_fast_rcnn_gets_the_proposals_of_each_tile():
    torch.manual_seed(0)
    detector = fast_rcnn("resnet18", num_classes=3, min_size=64, box_score_thresh=0.0).eval()
    given = []
    detector.register_forward_pre_hook(lambda _, arguments: given.append(arguments[1]))
    boxes = [[0, 0, 30, 30], [60, 10, 90, 40]]
    found = Predictor(detector, CLASSES).predict(
        with_squares(96, 64), tile=64, overlap=0.5, proposals=boxes, batch_size=9
    )
    assert [[one.tolist() for one in batch] for batch in given] == [
        [[[0, 0, 30, 30], [60, 10, 64, 40]], [[28, 10, 58, 40]]],
        [boxes],
    ]
    assert len(found) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 8}, "tile must be a number of pixels from 16 on"),
        ({"tile": "640"}, "tile must be"),
        ({"tile": (640, 0.5)}, "tile must be"),
        ({"tile": 64, "overlap": 1.0}, "overlap must be at least 0 and below 1, not 1.0"),
        ({"tile": 64, "overlap": -0.1}, "overlap must be"),
    ],
)
def test_tiles_out_of_range_are_told(options, message):
    with pytest.raises(UserError, match=message):
        Predictor(Blobs(), CLASSES).predict(with_squares(8, 8), **options)


def test_a_localizer_has_no_tiles():
    model = Predictor(localizer("cnn", num_classes=3, image_size=32).eval(), CLASSES)
    with pytest.raises(UserError, match="a localizer finds one object per picture"):
        model.predict(with_squares(100, 100), tile=64)


def test_the_command_takes_tiles(tiny_run, tmp_path, capsys):
    tiles = [Image.open(path).convert("RGB") for path in sorted((tiny_run.data / "val").iterdir())]
    large = Image.new("RGB", (256, 64))
    for index, tile in enumerate(tiles):
        large.paste(tile, (64 * index, 0))
    large.save(tmp_path / "large.png")
    out = ["--out", str(tmp_path / "out"), "--device", "cpu", "--min-score", "0"]
    command = ["detect", str(tiny_run.out), str(tmp_path / "large.png"), *out]
    assert main([*command, "--tile", "64", "--overlap", "0"]) == 0
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert max(entry["bbox"][0] for entry in results) > 192
    assert main([*command, "--tile", "4"]) == 2
    assert "tile must be a number of pixels from 16 on" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [{}, {"tile": (32, 32)}, {"compression": "zlib", "rowsperstrip": 7}],
    ids=["mapped", "tiled", "compressed"],
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_tiff_file_beyond_the_limit_of_pixels_is_searched_by_tiles(
    tmp_path, monkeypatch, channels, options
):
    tifffile = pytest.importorskip("tifffile")
    values = with_squares(300, 200, (40, 50, 70, 80), (250, 150, 290, 190))
    values = values[..., 0] if channels == 1 else values[..., [0, 1, 2, 2][:channels]]
    kind = {"photometric": "minisblack" if channels == 1 else "rgb", **options}
    tifffile.imwrite(tmp_path / "large.tif", values, **kind)
    model = Predictor(Blobs(), ["white"])
    expected = model.predict(tmp_path / "large.tif", tile=64, whole_picture=False)
    monkeypatch.setattr(Predictor, "reader", ImageReader(max_pixels=300 * 200 - 1), raising=True)
    with pytest.raises(UserError, match="large.tif is 300x200 pixels"):
        model.predict(tmp_path / "large.tif")
    model.detector.sizes.clear()
    found = model.predict(tmp_path / "large.tif", tile=64)
    assert sorted(found.boxes.tolist()) == [[40, 50, 70, 80], [250, 150, 290, 190]]
    assert torch.equal(found.boxes, expected.boxes)
    assert (found.width, found.height) == (300, 200)
    # Tiles only: the whole would not fit.
    assert {size for batch in model.detector.sizes for size in batch} == {(64, 64)}


def test_the_command_searches_but_does_not_draw_a_tiff_file_beyond_the_limit(
    tiny_run, tmp_path, capsys
):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "large.tif", with_squares(300, 200), photometric="rgb")
    out = tmp_path / "out"
    words = ["detect", str(tiny_run.out), str(tmp_path / "large.tif"), "--out", str(out)]
    assert main([*words, "--max-pixels", "9000"]) == 2
    assert "large.tif is 300x200 pixels" in capsys.readouterr().err
    assert main([*words, "--max-pixels", "9000", "--tile", "200", "--overwrite"]) == 0
    assert "large.tif is 300x200 pixels: too large to be drawn" in capsys.readouterr().out
    assert (out / "detections.json").is_file()
    assert not (out / "pictures").exists()


def test_files_beyond_the_limit_that_cannot_be_mapped_are_named(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    monkeypatch.setattr(Predictor, "reader", ImageReader(max_pixels=100), raising=True)
    model = Predictor(Blobs(), ["white"])
    tifffile.imwrite(tmp_path / "16.tif", np.zeros((80, 90), np.uint16), photometric="minisblack")
    Image.new("RGB", (90, 80)).save(tmp_path / "photo.png")
    Image.new("RGB", (90, 80)).save(tmp_path / "turned.tif", exif={274: 6})
    (tmp_path / "cut.tif").write_bytes((tmp_path / "16.tif").read_bytes()[:100])
    for name, message in (
        ("16.tif", "90x80 pixels of 1 x uint16, too many .* only upright 8-bit"),
        ("turned.tif", "90x80 pixels of 3 x uint8, too many .* only upright 8-bit"),
        ("photo.png", "90x80 pixels"),
        ("cut.tif", "is damaged"),
    ):
        with pytest.raises(UserError, match=f"{name}.* {message}"):
            model.predict(tmp_path / name, tile=64)
