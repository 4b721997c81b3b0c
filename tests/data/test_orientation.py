"""One rule of orientation: upright, unless the annotated size fits only the stored picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.config.data import CsvConfig
from rcnn_ext.data import (
    DetectionDataset,
    read_coco,
    read_csv_boxes,
    read_pennfudan,
    read_voc,
    read_yolo,
)
from rcnn_ext.data.images import image_size, load_image, load_tensor
from rcnn_ext.data.samples import raw_sample
from rcnn_ext.predict.pictures import PillowPicture
from tests.helpers.pictures import (
    exif_block,
    png_chunk,
    save_turned,
    upright_picture,
    with_jpeg_segment,
    with_png_chunk,
)

ORIENTATIONS = range(1, 9)
SIZES = ((64, 40), (48, 48))


def same(picture, expected):
    got, want = (np.asarray(one, dtype=int) for one in (picture, expected))
    return got.shape == want.shape and np.abs(got - want).mean() < 6


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".avif"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pictures_are_upright_in_every_format(tmp_path, orientation, suffix):
    if suffix == ".avif":
        pytest.importorskip("PIL._avif")
    path = tmp_path / f"a{suffix}"
    upright, _ = upright_picture()
    stored = save_turned(path, upright, orientation)
    assert same(load_image(path), upright)
    assert same(load_image(path, upright.size), upright)
    assert image_size(path) == upright.size
    if stored.size != upright.size:
        assert same(load_image(path, stored.size), stored)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_multispectral_files_are_upright_too(tmp_path, orientation):
    tifffile = pytest.importorskip("tifffile")
    upright, _ = upright_picture()
    path = tmp_path / "a.png"
    stored = np.asarray(save_turned(path, upright, orientation))[..., :1]
    tifffile.imwrite(
        tmp_path / "five.tif",
        np.repeat(stored, 5, axis=2),
        photometric="minisblack",
        planarconfig="contig",
        extratags=[(274, "H", 1, orientation, True)],
    )
    image = load_tensor(tmp_path / "five.tif", upright.size, channels=5)
    assert np.array_equal(image[4].numpy() * 255, np.asarray(upright)[..., 0])
    assert image_size(tmp_path / "five.tif") == upright.size


def test_orientation_of_xmp_and_behind_the_pixels_of_png(tmp_path):
    upright, _ = upright_picture()
    stored = save_turned(tmp_path / "a.png", upright, 6)
    stored.save(tmp_path / "xmp.jpg", quality=95, xmp=b'<x tiff:Orientation="6"/>')
    block = exif_block([(0x0112, 3, 1, b"\6\0\0\0")]).removeprefix(b"Exif\0\0")
    late = with_png_chunk(stored, png_chunk(b"eXIf", block), last=True)
    (tmp_path / "late.png").write_bytes(late)
    for name in ("xmp.jpg", "late.png"):
        assert same(load_image(tmp_path / name), upright), name
        assert image_size(tmp_path / name) == upright.size


@pytest.mark.parametrize(
    ("entries", "count"),
    [
        ([(0x0112, 4, 1, b"\6\0\0\0")], None),  # LONG rather than SHORT
        ([(0x0112, 3, 1, b"\6\0\0\0")], 200),  # cut off
        ([(0x011A, 2, 4, b"abc\0"), (0x0112, 3, 1, b"\6\0\0\0")], None),  # XResolution as text
        ([(0x011A, 5, 1, b"\xff\xff\0\0"), (0x0112, 3, 1, b"\6\0\0\0")], None),  # outside
        ([(0x010F, 99, 1, b"\xff\xff\0\0"), (0x0112, 3, 1, b"\6\0\0\0")], None),  # no such type
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_other_tags_that_are_broken_do_not_hide_the_orientation(tmp_path, entries, count):
    upright, _ = upright_picture()
    stored = save_turned(tmp_path / "a.png", upright, 6)
    path = tmp_path / "a.jpg"
    path.write_bytes(with_jpeg_segment(stored, 0xE1, exif_block(entries, count)))
    assert same(load_image(path), upright)
    assert image_size(path) == upright.size


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0" + bytes(range(60)),
        exif_block([(0x0112, 3, 1, b"\x09\0\0\0")]),
        exif_block([(0x0112, 2, 2, b"6\0\0\0")]),
        exif_block([(0x0112, 5, 1, b"\xff\xff\xff\xff")]),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_an_orientation_that_is_none_leaves_the_picture_as_stored(tmp_path, block):
    upright, _ = upright_picture()
    path = tmp_path / "a.jpg"
    path.write_bytes(with_jpeg_segment(upright, 0xE1, block))
    assert same(load_image(path), upright)
    assert image_size(path) == upright.size


def _coco(root, size, box, suffix):
    root.mkdir()
    entry = {"id": 1, "file_name": f"1{suffix}"}
    if size is not None:
        entry |= {"width": size[0], "height": size[1]}
    x1, y1, x2, y2 = box
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}]
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": [entry], "annotations": boxes, "categories": categories}
    (root / "train.json").write_text(json.dumps(content))
    return root, lambda: read_coco(root / "train.json", root)


def _voc(root, size, box, suffix):
    for part in ("Annotations", "JPEGImages"):
        (root / part).mkdir(parents=True)
    x1, y1, x2, y2 = box
    sides = "" if size is None else f"<width>{size[0]}</width><height>{size[1]}</height>"
    (root / "Annotations" / "1.xml").write_text(
        f"<annotation><filename>1{suffix}</filename><size>{sides}</size><object><name>thing</name>"
        f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object></annotation>"
    )
    return root / "JPEGImages", lambda: read_voc(root)


def _yolo(root, size, box, suffix):
    for part in ("images/train", "labels/train"):
        (root / part).mkdir(parents=True)
    x1, y1, x2, y2 = (side / of for side, of in zip(box, (*size, *size), strict=True))
    line = f"0 {(x1 + x2) / 2} {(y1 + y2) / 2} {x2 - x1} {y2 - y1}\n"
    (root / "labels/train/1.txt").write_text(line)
    return root / "images/train", lambda: read_yolo(root)


def _csv(root, size, box, suffix):
    root.mkdir()
    row = ",".join(map(str, box))
    (root / "train.csv").write_text(f"filename,xmin,ymin,xmax,ymax,class\n1{suffix},{row},thing\n")
    return root, lambda: read_csv_boxes(root / "train.csv", root, config=CsvConfig())


def _pennfudan(root, size, box, suffix):
    for part in ("PNGImages", "PedMasks"):
        (root / part).mkdir(parents=True)
    mask = Image.new("L", size)
    mask.paste(1, box)
    mask.save(root / "PedMasks" / "1_mask.png")
    return root / "PNGImages", lambda: read_pennfudan(root)


@pytest.mark.parametrize("form", [_coco, _voc, _yolo, _csv, _pennfudan])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_training_sees_the_object_in_its_box_in_every_format(tmp_path, form, size, orientation):
    upright, box = upright_picture(size)
    folder, read = form(tmp_path / "data", size, box, ".jpg")
    save_turned(folder / "1.jpg", upright, orientation)
    image, target = DetectionDataset(read())[0]
    assert _inside(image, target["boxes"][0]) > 0.8


@pytest.mark.parametrize("form", [_coco, _csv])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_without_recorded_sizes_boxes_are_in_upright_pixels(tmp_path, form, orientation):
    upright, box = upright_picture((64, 40))
    folder, read = form(tmp_path / "data", None, box, ".jpg")
    save_turned(folder / "1.jpg", upright, orientation)
    image, target = DetectionDataset(read())[0]
    assert _inside(image, target["boxes"][0]) > 0.8


def test_annotations_of_the_stored_picture_and_proposals_of_the_upright_one(tmp_path):
    upright, box = upright_picture((64, 40))
    stored = save_turned(tmp_path / "1.jpg", upright, 6)
    inside = np.argwhere(np.asarray(stored)[..., 0] > 128)
    (y1, x1), (y2, x2) = inside.min(axis=0), inside.max(axis=0) + 1
    corners = tuple(int(value) for value in (x1, y1, x2, y2))
    folder, read = _coco(tmp_path / "data", stored.size, corners, ".jpg")
    (tmp_path / "1.jpg").rename(folder / "1.jpg")

    class Upright:
        def boxes(self, image):
            return np.array([box], dtype=np.float32)

    image, target = raw_sample(read().images[0], Upright())
    assert tuple(image.shape[-2:]) == stored.size[::-1]
    assert target["boxes"].tolist() == [list(map(float, corners))]
    assert np.abs(target["proposals"].numpy() - np.array(corners)).max() <= 1


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pillow_images_are_brought_upright(tmp_path, orientation):
    upright, _ = upright_picture()
    for name in ("a.jpg", "a.tif"):
        save_turned(tmp_path / name, upright, orientation)
        with Image.open(tmp_path / name) as opened:
            assert same(PillowPicture(opened, tmp_path / name).picture(), upright)


def _inside(image, box):
    x1, y1, x2, y2 = (int(value) for value in box)
    return float(image[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].mean())
