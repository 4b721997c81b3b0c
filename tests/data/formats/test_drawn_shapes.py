"""Shapes of labelme, VIA and Supervisely that are wrong, left out or unusual."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("lxml", reason="lxml comes with the extra train")
from rcnn_ext.cli import main
from rcnn_ext.data import DataConfig, open_split
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError
from tests.helpers import layouts
from tests.helpers import tool_layouts as tools
from tests.helpers.documents import BOX, labelme, read, region, via


@pytest.mark.parametrize(
    ("shape", "box", "outline"),
    [
        ({"shape_type": "rectangle", "points": [[30, 4], [10, 16]]}, BOX, ""),
        ({"shape_type": "rectangle", "points": layouts.CORNERS}, BOX, ""),
        ({"shape_type": "polygon", "points": layouts.CORNERS[:3]}, BOX, "polygon"),
        ({"points": layouts.CORNERS}, BOX, "polygon"),
        (
            {"shape_type": "rotation", "points": [[20, 4], [30, 10], [20, 16], [10, 10]]},
            BOX,
            "rotation",
        ),
        ({"shape_type": "circle", "points": [[20, 10], [23, 14]]}, [15, 5, 25, 15], "circle"),
        ({"shape_type": "linestrip", "points": [[10, 4], [30, 9], [12, 16]]}, BOX, "linestrip"),
        ({"shape_type": "line", "points": [[10, 4], [30, 16]]}, BOX, "line"),
        ({"shape_type": "mask", "points": [[10, 4], [30, 16]], "mask": "iVBORw0K"}, BOX, ""),
    ],
)
def test_shapes_of_labelme(tmp_path, shape, box, outline):
    found, problems = read(labelme(tmp_path, shape))
    np.testing.assert_allclose(found.images[0].boxes, [box], atol=1e-4)
    assert dict(found.outlines) == ({outline: 1} if outline else {})
    assert not problems


def test_shapes_without_a_box_are_counted(tmp_path, capsys):
    point = {"shape_type": "point", "points": [[3, 4]]}
    root = labelme(tmp_path, tools.RECTANGLE, point, point)
    assert main(["check", str(root)]) == 0
    said = capsys.readouterr().out
    assert "warning: left out: 2 objects of shape point, which have no box, the first here" in said
    line = int(said.partition("p0.json:")[2].partition(":")[0])
    text = (root / "p0.json").read_text().splitlines()
    assert text[line - 1].strip() == "{"
    assert "point" in "".join(text[line : line + 10])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"label": "", "points": layouts.CORNERS}, "it has no 'label'"),
        ({"points": []}, "'points' of the cat is [], not a list of points"),
        ({"points": [[1, "a"], [2, 3]]}, "not a list of points"),
        ({"points": [[1, float("nan")], [2, 3]]}, "not a list of points"),
        ({"points": [[1, 10**400], [2, 3]]}, "not a list of points"),
        ({"points": [[1, 2]]}, "the polygon of the cat has a single point"),
        ({"shape_type": "circle", "points": layouts.CORNERS}, "has 4 points, not center and edge"),
    ],
)
def test_wrong_shapes_of_labelme_are_named(tmp_path, shape, message):
    root = labelme(tmp_path, {"shape_type": None, **shape})
    with pytest.raises(UserError) as caught:
        open_split(DataConfig(), root, "train")
    assert message in str(caught.value)
    assert "p0.json:5: error: shapes[0]: " in str(caught.value)


def test_an_image_that_is_only_embedded_is_named(tmp_path):
    root = labelme(tmp_path, tools.RECTANGLE, imageData="iVBORw0KGgo=")
    (root / "p0.png").unlink()
    with pytest.raises(UserError, match=r"the image p0\.png is nowhere in .*holds a copy of it"):
        open_split(DataConfig(), root, "train")


def test_json_that_is_no_labelme_file_never_passes_for_background(tmp_path):
    tools.labelme(tmp_path)
    (tmp_path / "p1.json").write_text("{")
    (tmp_path / "p2.json").write_text('{"version": "5", "other": 1}')
    (tmp_path / "classes.json").write_text('["cat", "dog"]')
    found, problems = read(tmp_path)
    assert (len(found), found.skipped) == (layouts.COUNT - 2, 2)
    assert [(p.severity, p.file.name) for p in problems] == [
        ("error", "p1.json"),
        ("error", "p2.json"),
        ("warning", "classes.json"),
    ]


@pytest.mark.parametrize(
    ("given", "box", "outline"),
    [
        (region("rect", x=10, y=4, width=20, height=12), BOX, ""),
        (region("circle", cx=20, cy=10, r=5), [15, 5, 25, 15], "circle"),
        (region("ellipse", cx=20, cy=10, rx=10, ry=6), BOX, "ellipse"),
        (region("ellipse", cx=20, cy=10, rx=6, ry=10, theta=np.pi / 2), BOX, "ellipse"),
        (region("polygon", all_points_x=[10, 30], all_points_y=[4, 16]), BOX, "polygon"),
        (region("polyline", all_points_x=[10, 30], all_points_y=[16, 4]), BOX, "polyline"),
    ],
)
def test_regions_of_via(tmp_path, given, box, outline):
    found, problems = read(via(tmp_path, given))
    np.testing.assert_allclose(found.images[0].boxes, [box], atol=1e-4)
    assert dict(found.outlines) == ({outline: 1} if outline else {})
    assert not problems


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (region("rect", x=10, y=4, width=20), "the rect has no numbers x, y, width and height"),
        (region("polygon", all_points_x=[1], all_points_y=[]), "lists all_points_x and"),
        (region("blob"), "it has the unknown shape 'blob'"),
        (region("circle", {}, cx=20, cy=10, r=5), "it has no class"),
        (region("circle", {"type": ""}, cx=20, cy=10, r=5), "it has no type"),
        (
            region("circle", {"type": {"cat": True, "dog": True}}, cx=20, cy=10, r=5),
            "it has no type",
        ),
    ],
)
def test_wrong_regions_of_via_are_named(tmp_path, given, message):
    with pytest.raises(UserError, match=f"region 0 of p0.png: .*{message}"):
        open_split(DataConfig(), via(tmp_path, given), "train")


def test_the_attribute_of_via_that_is_the_class(tmp_path):
    shape = {"cx": 20, "cy": 10, "r": 5}
    both = {"color": "red", "label": {"dog": True, "cat": False}}
    found, _ = read(via(tmp_path, region("circle", both, **shape)))
    assert found.classes.names == ("dog",)
    unclear = {"color": "red", "size": "big"}
    with pytest.raises(UserError, match="the attributes color, size, and none is called class"):
        open_split(DataConfig(), via(tmp_path, region("circle", unclear, **shape)), "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xy": [2, 1, 2, 3]}, "'xy' is [2, 1, 2, 3], which is no shape of VIA's"),
        ({"xy": ["a"]}, "not a list of numbers"),
        ({"av": {"1": "7"}}, "it has no class, or several"),
        ({"vid": "99"}, "is of no image"),
    ],
)
def test_wrong_regions_of_via_3_are_named(tmp_path, change, message):
    tools.via_3(tmp_path)
    document = json.loads((tmp_path / "animals.json").read_text())
    document["metadata"]["1_aBcD"] |= change
    layouts.write_json(tmp_path / "animals.json", document)
    with pytest.raises(UserError) as caught:
        open_split(DataConfig(), tmp_path, "train")
    assert message in str(caught.value)


def test_regions_of_via_3_without_a_box_are_counted(tmp_path):
    tools.via_3(tmp_path)
    document = json.loads((tmp_path / "animals.json").read_text())
    document["metadata"]["1_aBcD"]["xy"] = [1, 3, 4]
    document["metadata"]["2_aBcD"]["xy"] = []
    layouts.write_json(tmp_path / "animals.json", document)
    found, problems = read(tmp_path)
    assert sum(len(record.boxes) for record in found.images) == layouts.COUNT - 2
    assert [
        p.message.removeprefix("left out: ").partition(" or ")[0].partition(",")[0]
        for p in problems
    ] == ["1 objects of shape point", "1 notes on whole images"]


def test_supervisely_points_are_counted_and_bitmaps_checked(tmp_path):
    layouts.pictures(tmp_path / "ds" / "img", [0])
    point = {"classTitle": "cat", "geometryType": "point", "points": {"exterior": [[1, 2]]}}
    bitmap = {
        "classTitle": "cat",
        "geometryType": "bitmap",
        "bitmap": {"data": "?", "origin": [1, 2]},
    }
    value = {**tools.supervisely_file(0), "objects": [point, bitmap]}
    layouts.write_json(tmp_path / "ds" / "ann" / "p0.json", value)
    report = Report()
    with pytest.raises(UserError, match="the bitmap of the cat is damaged"):
        open_split(DataConfig(), tmp_path, "train", report=report)
    value["objects"] = [point, tools.supervisely_file(0)["objects"][0]]
    layouts.write_json(tmp_path / "ds" / "ann" / "p0.json", value)
    found, problems = read(tmp_path)
    assert len(found.images[0].boxes) == 1
    assert "1 objects of shape point, which have no box here" in problems[0].message


def test_regions_of_several_attributes_and_images(tmp_path):
    """Each image has text for every attribute."""
    layouts.pictures(tmp_path, [0, 1])
    images = {}
    for number in (0, 1):
        image = tools.via_image(number)
        image["regions"][0]["region_attributes"] |= {"label": "x", "color": "red"}
        images[f"p{number}"] = image
    layouts.write_json(tmp_path / "via.json", images)
    assert open_split(DataConfig(), tmp_path, "train").classes.names == ("x",)
