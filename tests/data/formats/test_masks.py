"""Outlines and masks of objects are kept in every format that has polygons."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.data import DataConfig, Segmentation, open_split
from tests.helpers import tool_layouts

# A triangle, told from its box by its upper right half.
TRIANGLE = [[4, 2], [24, 14], [4, 14]]
FLAT = [value for point in TRIANGLE for value in point]
XS, YS = [x for x, _ in TRIANGLE], [y for _, y in TRIANGLE]
WIDTH, HEIGHT = 40, 20


def labelme(root):
    shape = {"label": "a", "shape_type": "polygon", "points": TRIANGLE}
    value = {"shapes": [shape], "imagePath": "0.png", "imageWidth": WIDTH, "imageHeight": HEIGHT}
    (root / "0.json").write_text(json.dumps(value))


def via(root):
    region = {
        "shape_attributes": {"name": "polygon", "all_points_x": XS, "all_points_y": YS},
        "region_attributes": {"class": "a"},
    }
    value = {"0.png1": {"filename": "0.png", "size": 1, "regions": [region], "file_attributes": {}}}
    (root / "via.json").write_text(json.dumps(value))


def via_csv(root):
    shape = json.dumps({"name": "polygon", "all_points_x": XS, "all_points_y": YS})
    cells = ["0.png", "1", "{}", "1", "0", shape, json.dumps({"class": "a"})]
    quoted = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
    head = "filename,file_size,file_attributes,region_count,region_id,"
    (root / "via.csv").write_text(head + "region_shape_attributes,region_attributes\n" + quoted)


def via_3(root):
    value = {
        "project": {"pid": "x", "vid_list": ["1"]},
        "attribute": {
            "1": {"aname": "class", "anchor_id": "FILE1_Z0_XY1", "type": 4, "options": {"a": "a"}}
        },
        "file": {"1": {"fid": "1", "fname": "0.png", "type": 2, "loc": 1, "src": "0.png"}},
        "view": {"1": {"fid_list": ["1"]}},
        "metadata": {"1_x": {"vid": "1", "flg": 0, "z": [], "xy": [7, *FLAT], "av": {"1": "a"}}},
    }
    (root / "via3.json").write_text(json.dumps(value))


def datumaro(root):
    value = {
        "info": {},
        "categories": {"label": {"labels": [{"name": "a", "parent": ""}]}},
        "items": [
            {
                "id": "0",
                "annotations": [{"id": 0, "type": "polygon", "label_id": 0, "points": FLAT}],
                "image": {"path": "0.png", "size": [HEIGHT, WIDTH]},
            }
        ],
    }
    (root / "default.json").write_text(json.dumps(value))


def label_studio(root):
    points = [[x / WIDTH * 100, y / HEIGHT * 100] for x, y in TRIANGLE]
    result = {
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "type": "polygonlabels",
        "value": {"points": points, "closed": True, "polygonlabels": ["a"]},
    }
    task = {"id": 1, "data": {"image": "0.png"}, "annotations": [{"id": 1, "result": [result]}]}
    (root / "tasks.json").write_text(json.dumps([task]))


def cvat(root):
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in TRIANGLE)
    (root / "annotations.xml").write_text(
        "<annotations><version>1.1</version>"
        f'<image id="0" name="0.png" width="{WIDTH}" height="{HEIGHT}">'
        f'<polygon label="a" points="{points}"/></image></annotations>'
    )


def voc(root):
    corners = "".join(
        f"<x{i}>{x}</x{i}><y{i}>{y}</y{i}>" for i, (x, y) in enumerate(TRIANGLE, start=1)
    )
    (root / "0.xml").write_text(
        "<annotation><filename>0.png</filename>"
        f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
        f"<object><name>a</name><polygon>{corners}</polygon></object></annotation>"
    )


def yolo(root):
    (root / "data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    parts = " ".join(f"{x / WIDTH} {y / HEIGHT}" for x, y in TRIANGLE)
    for name in ("images", "labels"):
        (root / name).mkdir()
    (root / "0.png").rename(root / "images" / "0.png")
    (root / "labels" / "0.txt").write_text(f"0 {parts}\n")


@pytest.fixture
def root(tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "0.png")
    return tmp_path


@pytest.mark.parametrize(
    "write",
    [labelme, via, via_csv, via_3, datumaro, label_studio, cvat, voc, yolo],
    ids=lambda write: write.__name__,
)
def test_polygons_are_kept_where_asked_for(root, write):
    write(root)
    plain = open_split(DataConfig(), root, "train").images[0]
    assert plain.boxes.tolist() == [pytest.approx([4, 2, 24, 14])]
    assert plain.segmentations is None
    (record,) = open_split(DataConfig(masks=True), root, "train").images
    np.testing.assert_array_equal(record.boxes, plain.boxes)
    (found,) = record.segmentations
    wanted = Segmentation.parse([FLAT]).mask(WIDTH, HEIGHT)
    difference = found.mask(record.width, record.height) != wanted
    assert difference.sum() <= 2, "float32 of coordinates in parts of the sides"
    assert wanted.sum() < 150


def test_holes_of_polygons_are_left_out(tmp_path):
    (tmp_path / "set" / "img").mkdir(parents=True)
    (tmp_path / "set" / "ann").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "set" / "img" / "0.png")
    square = [[2, 2], [32, 2], [32, 18], [2, 18]]
    holes = [[[5, 5], [10, 5], [10, 10], [5, 10]], [[20, 6], [20, 12], [26, 12], [26, 6]]]
    item = {
        "classTitle": "a",
        "geometryType": "polygon",
        "points": {"exterior": square, "interior": holes},
    }
    value = {"size": {"width": WIDTH, "height": HEIGHT}, "objects": [item], "tags": []}
    (tmp_path / "set" / "ann" / "0.png.json").write_text(json.dumps(value))
    meta = {"classes": [{"title": "a", "shape": "polygon"}], "tags": []}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    (record,) = open_split(DataConfig(masks=True), tmp_path, "train").images
    wanted = np.zeros((HEIGHT, WIDTH), dtype=bool)
    wanted[2:18, 2:32] = True
    wanted[5:10, 5:10] = False
    wanted[6:12, 20:26] = False
    np.testing.assert_array_equal(record.segmentations[0].mask(WIDTH, HEIGHT), wanted)


def test_instances_of_masks_are_kept(tmp_path):
    for name in ("PNGImages", "PedMasks"):
        (tmp_path / name).mkdir()
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[3:9, 5:20] = 2
    mask[6:15, 15:25] = 7
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "PNGImages" / "0.png")
    Image.fromarray(mask).save(tmp_path / "PedMasks" / "0_mask.png")
    (record,) = open_split(DataConfig(masks=True), tmp_path, "train").images
    for number, found in zip((2, 7), record.segmentations, strict=True):
        np.testing.assert_array_equal(found.mask(WIDTH, HEIGHT), mask == number)


def test_rectangles_have_no_mask(root):
    shapes = [
        {"label": "a", "shape_type": "rectangle", "points": [[1, 2], [9, 8]]},
        {"label": "a", "shape_type": "polygon", "points": [[1, 2], [9, 8]]},
        {"label": "a", "shape_type": "polygon", "points": [[1, 2], [9e300, 8], [1, 8]]},
    ]
    (root / "0.json").write_text(json.dumps({"shapes": shapes, "imagePath": "0.png"}))
    (record,) = open_split(DataConfig(masks=True), root, "train").images
    assert record.segmentations[:2] == (None, None)
    assert record.segmentations[2].mask(WIDTH, HEIGHT).any(), "far out, but no infinity"


def test_layouts_of_tools_are_read_alike_with_masks(tmp_path):
    for name in ("labelme", "via_export", "supervisely", "label_studio", "cvat_images", "datumaro"):
        folder = tmp_path / name
        folder.mkdir()
        getattr(tool_layouts, name)(folder)
        plain = open_split(DataConfig(), folder, "train").images
        kept = open_split(DataConfig(masks=True), folder, "train").images
        assert kept.has_segmentations
        assert not plain.has_segmentations
        np.testing.assert_array_equal(kept.boxes, plain.boxes)
        for record in kept:
            for box, found in zip(record.boxes, record.segmentations, strict=True):
                if found is not None:
                    np.testing.assert_allclose(found.box(), box, atol=0.01)


def test_masks_of_another_size_are_left_out(root):
    runs = {"counts": [3, 4, WIDTH * HEIGHT - 7], "size": [HEIGHT, WIDTH]}
    turned = {"counts": [3, 4, WIDTH * HEIGHT - 7], "size": [WIDTH, HEIGHT]}
    document = {
        "images": [{"id": 1, "file_name": "0.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": 1,
                "bbox": [1, 1, 8, 8],
                "segmentation": value,
            }
            for number, value in enumerate((runs, turned, [FLAT]), start=1)
        ],
    }
    (root / "train.json").write_text(json.dumps(document))
    found = open_split(DataConfig(masks=True), root, "train")
    (record,) = found.images
    assert [one is None for one in record.segmentations] == [False, True, False]
    (problem,) = found.problems
    assert problem.message == (
        "annotations[1] (id 2): its mask is 20x40 pixels, the image 40x20; the mask was left out"
    )
    assert open_split(DataConfig(), root, "train").problems == ()
