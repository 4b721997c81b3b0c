from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from rcnn_ext.cli import main
from rcnn_ext.errors import UserError
from rcnn_ext.predict.detect_record import distinct_names, image_ids
from rcnn_ext.predict.detections import Detections
from rcnn_ext.predict.pictures import PictureFile
from rcnn_ext.predict.predictor import Predictor
from tests.helpers.corner_model import CLASSES, Corner
from tests.helpers.pictures import png_header


def pictures(folder, sizes):
    result = []
    for i, size in enumerate(sizes):
        Image.new("RGB", size, (255, 128, 0)).save(folder / f"{i}.png")
        result.append(PictureFile(folder / f"{i}.png", Path(f"{i}.png")))
    return result


def run(model, images, **options):
    options = {"batch_size": 2, "min_score": 0.5, **options}
    return list(Predictor(model, CLASSES).stream(images, **options))


def test_batches_scores_and_sizes(tmp_path):
    model = Corner()
    found = run(model, pictures(tmp_path, [(40, 20), (60, 30), (20, 20)]))
    assert model.batches == [2, 1]
    assert [one.picture.size for one in found] == [(40, 20), (60, 30), (20, 20)]
    assert [one.image_size for one in found] == [(20, 40), (30, 60), (20, 20)]
    assert [one.boxes.tolist() for one in found] == [
        [[20, 10, 40, 20]],
        [[30, 15, 60, 30]],
        [[10, 10, 20, 20]],
    ]
    assert [one.labels.tolist() for one in found] == [[2]] * 3
    assert len(run(model, pictures(tmp_path, [(8, 8)]), min_score=0.3)[0].labels) == 2


def test_an_unreadable_picture_does_not_stop_the_others(tmp_path):
    images = pictures(tmp_path, [(40, 20), (60, 30), (20, 20)])
    images[1].path.write_text("no picture")
    first, second, third = run(Corner(), images)
    assert isinstance(second, UserError)
    assert isinstance(first, Detections)
    assert third.boxes.tolist() == [[10, 10, 20, 20]]
    for one in images:
        one.path.write_text("no picture")
    model = Corner()
    assert all(isinstance(one, UserError) for one in run(model, images))
    assert model.batches == []


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["000000000139.jpg", "000000000285.jpg"], [139, 285]),
        (["b.jpg", "7.jpg"], [1, 2]),
        (["1/5.jpg", "2/5.jpg"], [1, 2]),
        (["٣.jpg"], [1]),
    ],
)
def test_image_ids(names, ids):
    assert list(image_ids(names)) == ids


def test_names_of_pictures_differ():
    names = ("a.png", "a.jpg", "x/a.png", "a.jpeg", "a-2.png")
    assert distinct_names(names) == [
        "a.jpg",
        "a-2.jpg",
        "x/a.jpg",
        "a-3.jpg",
        "a-2-2.jpg",
    ]


def detect_cli(tiny_run, out, *arguments):
    return main(["detect", str(tiny_run.out), *map(str, arguments), "--out", str(out)])


def test_the_command_writes_json_pictures_and_an_overview(tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    assert detect_cli(tiny_run, out, tiny_run.data / "val", "--min-score", "0") == 0
    results = json.loads((out / "detections.json").read_text())
    assert f"{len(results)} detections in 4 images" in capsys.readouterr().out
    assert results
    for entry in results:
        x, y, width, height = entry["bbox"]
        assert entry["file_name"] == f"{entry['image_id']:06d}.png"
        assert entry["category_name"] == ("circle", "square", "triangle")[entry["category_id"] - 1]
        assert -0.01 <= x <= x + width <= 64.01
        assert -0.01 <= y <= y + height <= 64.01
    assert sorted(os.listdir(out / "pictures")) == [f"00000{i}.jpg" for i in (1, 2, 3, 4)]
    with Image.open(out / "overview.jpg") as overview:
        assert overview.width > 4 * 320


def test_the_json_is_what_pycocotools_loads(tiny_run, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    detect_cli(tiny_run, tmp_path, tiny_run.data / "val", "--min-score", "0", "--no-pictures")
    assert sorted(os.listdir(tmp_path)) == ["detect-shards", "detections.json"]
    truth = coco.COCO(str(tiny_run.data / "annotations" / "instances_val.json"))
    loaded = truth.loadRes(str(tmp_path / "detections.json"))
    assert len(loaded.anns) == len(json.loads((tmp_path / "detections.json").read_text()))


def test_the_command_names_unreadable_pictures_and_does_the_others(tiny_run, tmp_path, capsys):
    good = tiny_run.data / "val" / "000002.png"
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    assert detect_cli(tiny_run, tmp_path / "out", bad, good) == 2
    error = capsys.readouterr().err
    assert f"{bad} is not an image that Pillow can read" in error
    assert "; the others are done" in error
    assert os.listdir(tmp_path / "out" / "pictures") == ["000002.jpg"]
    assert (tmp_path / "out" / "detections.json").exists()


def test_the_command_names_huge_pictures_and_answers_thin_ones(tiny_run, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, size in (("a.png", (64, 64)), ("line.png", (4000, 3)), ("wide.png", (70, 64))):
        Image.new("RGB", size).save(folder / name)
    (folder / "bomb.png").write_bytes(png_header(100_000, 100_000))
    out = tmp_path / "out"
    assert detect_cli(tiny_run, out, folder, "--max-pixels", 4000 * 3) == 2
    said = capsys.readouterr().err
    assert "bomb.png is 100000x100000 pixels, 10,000,000,000 in all; pictures of more than" in said
    assert "the others are done" in said
    assert sorted(os.listdir(out / "pictures")) == ["a.jpg", "line.jpg", "wide.jpg"]
    other = [folder / "wide.png", "--max-pixels", 64 * 64]
    assert detect_cli(tiny_run, out, *other) == 2
    assert "max_pixels=12000" in capsys.readouterr().err
    assert detect_cli(tiny_run, out, *other, "--overwrite") == 2
    assert "wide.png is 70x64 pixels" in capsys.readouterr().err
