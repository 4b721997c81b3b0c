"""What is wrong, left out or unusual in the JSON and XML of annotation tools."""

from __future__ import annotations

import contextlib
import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lxml", reason="lxml comes with the extra train")

from rcnn_ext.cli import main
from rcnn_ext.data import DataConfig, detect_format, open_split, read_voc
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError
from tests.helpers import layouts
from tests.helpers import tool_layouts as tools
from tests.helpers.real_data import REAL, needs_real_data

BOX = list(layouts.BOX)
TURNED = [[20, 4], [30, 10], [20, 16], [10, 10]]
READ = ("LabelImg CreateML", "labelme", "VIA export", "Label Studio JSON")


def read(root, **options):
    """Return what is read of a folder, and its problems, errors left out."""
    report = Report()
    return open_split(DataConfig(**options), root, "train", report=report), report.problems


def labelme(root, *shapes, image="p0.png", **more):
    layouts.pictures(root, [0])
    document = {**tools.labelme_file(0, shapes, image), **more}
    tools.write_json(root / "p0.json", document)
    return root


def label_studio(root, *results, image="/data/upload/1/0a1b2c3d-p0.png", **more):
    layouts.pictures(root / "images", [0])
    task = {**tools.label_studio_task(0, image, results), **more}
    tools.write_json(root / "export.json", [task])
    return root


def cvat(root, shapes):
    layouts.pictures(root / "images", [0])
    (root / "annotations.xml").write_text(
        "<annotations>\n<version>1.1</version>\n"
        f'<image id="0" name="p0.png" width="40" height="20">\n{shapes}\n</image></annotations>'
    )
    return root


def via(root, *regions, **more):
    layouts.pictures(root, [0])
    image = {**tools.via_image(0), "regions": list(regions), **more}
    tools.write_json(root / "via.json", {"p0.png200": image})
    return root


def region(name, attributes=None, **shape):
    return {
        "shape_attributes": {"name": name, **shape},
        "region_attributes": {"type": "cat"} if attributes is None else attributes,
    }


@pytest.mark.parametrize(
    ("shape", "box", "outline"),
    [
        ({"shape_type": "rectangle", "points": [[30, 4], [10, 16]]}, BOX, ""),
        ({"shape_type": "rectangle", "points": tools.CORNERS}, BOX, ""),
        ({"shape_type": "polygon", "points": tools.CORNERS[:3]}, BOX, "polygon"),
        ({"points": tools.CORNERS}, BOX, "polygon"),
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
        ({"label": "", "points": tools.CORNERS}, "it has no 'label'"),
        ({"points": []}, "'points' of the cat is [], not a list of points"),
        ({"points": [[1, "a"], [2, 3]]}, "not a list of points"),
        ({"points": [[1, float("nan")], [2, 3]]}, "not a list of points"),
        ({"points": [[1, 10**400], [2, 3]]}, "not a list of points"),
        ({"points": [[1, 2]]}, "the polygon of the cat has a single point"),
        ({"shape_type": "circle", "points": tools.CORNERS}, "has 4 points, not center and edge"),
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


@pytest.mark.parametrize("name", tools.TOOLS)
def test_images_without_annotations_are_counted(tmp_path, name):
    tools.TOOLS[name][0](tmp_path)
    layouts.pictures(tmp_path / "train", [8, 9])
    _, problems = read(tmp_path)
    (problem,) = problems
    assert problem.severity == "warning"
    assert "left out: 2 images that have no annotations, the first here" in problem.message
    assert problem.file == tmp_path / "train" / "p8.png"


@pytest.mark.parametrize("name", tools.TOOLS)
def test_missing_images_are_named(tmp_path, name):
    tools.TOOLS[name][0](tmp_path)
    gone = sorted(tmp_path.rglob("*.[pP][nN][gG]"))[0]
    gone.unlink()
    found, problems = read(tmp_path)
    (problem,) = problems
    assert problem.severity == "error"
    assert "is nowhere in" in problem.message
    assert found.skipped == 1


@pytest.mark.parametrize(
    ("make", "file"),
    [
        (tools.createml_labelimg, "pictures.json"),
        (tools.labelme, "p0.json"),
        (tools.via_export, "via_region_data.json"),
        (tools.supervisely, "ds0/ann/p0.png.json"),
        (tools.supervisely, "meta.json"),
        (tools.label_studio, "project-1-at-2024-05-01-10-00-0a1b2c3d.json"),
        (tools.cvat_images, "annotations.xml"),
        (tools.imagefolder_with_card, "metadata.jsonl"),
        (tools.imagefolder_csv, "metadata.csv"),
        (tools.datumaro, "annotations/default.json"),
    ],
)
@pytest.mark.parametrize(
    "damage",
    ["cut", "deep", "digits", "latin", "nul", "other"],
)
def test_damaged_files_are_named(tmp_path, make, file, damage, capsys):
    """By one line with the file, soon, and never by an exception."""
    make(tmp_path)
    path = tmp_path / file
    content = path.read_bytes()
    kind = detect_format(tmp_path)
    path.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "deep": content[:-2] + b"[" * 100_000 + b"]" * 100_000 + content[-2:],
            "digits": content.replace(b"10", b"1" * 5000, 1),
            "latin": content.replace(b"cat", "chât".encode("latin-1")),
            "nul": content.replace(b"cat", b"\0"),
            "other": b"[1, 2, {}]",
        }[damage]
    )
    before = time.process_time()
    code = main(["check", str(tmp_path), "--format", kind])
    said = capsys.readouterr()
    assert time.process_time() - before < 5
    assert "unexpected" not in said.err + said.out
    assert "Traceback" not in said.err
    assert code in (0, 2)
    if code == 2:
        assert path.name in said.out + said.err or "no split" in said.err


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize(
    "name", ["LabelImg CreateML", "labelme", "VIA export", "Label Studio JSON"]
)
def test_json_in_every_encoding_of_unicode(tmp_path, name, encoding, capsys):
    tools.TOOLS[name][0](tmp_path)
    for path in tmp_path.rglob("*.json"):
        text = path.read_text().replace('"cat"', '"猫"')
        path.write_bytes(text.encode(encoding))
    assert main(["check", str(tmp_path), "--strict"]) == 0
    assert open_split(DataConfig(), tmp_path, "train").classes.names == ("dog", "猫")


def test_an_image_that_is_described_twice_is_named(tmp_path):
    layouts.pictures(tmp_path)
    entries = [tools.createml_entry(n) for n in (0, 1, 0)]
    tools.write_json(tmp_path / "a.json", entries)
    with pytest.raises(UserError, match=r"p0\.png is described twice, first by .*a\.json"):
        open_split(DataConfig(), tmp_path, "train")


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for number, folder in enumerate(("left", "right")):
        layouts.pictures(tmp_path / "images" / folder, [0])
        document = tools.labelme_file(number, [tools.RECTANGLE], f"/home/me/{folder}/p0.png")
        tools.write_json(tmp_path / "labels" / f"{folder}.json", document)
    found = open_split(DataConfig(), tmp_path, "train")
    labels = {r.path.parent.name: r.labels.tolist() for r in found.images}
    assert labels == {"left": [1], "right": [2]}


def test_files_of_no_split_beside_others_are_counted(tmp_path):
    tools.createml_roboflow(tmp_path)
    tools.write_json(tmp_path / "more.json", [tools.createml_entry(0)])
    found, problems = read(tmp_path)
    assert len(found) == 4
    assert "1 annotation files of no split, where others have one" in problems[-1].message


def test_a_named_file_is_read_alone(tmp_path):
    tools.createml_labelimg(tmp_path)
    tools.write_json(tmp_path / "two.json", [tools.createml_entry(n) for n in (0, 1)])
    config = DataConfig(train_annotations="two.json")
    found = open_split(config, tmp_path, "train")
    assert len(found) == 2
    assert not found.problems


def test_turned_rectangles_and_ellipses_of_label_studio(tmp_path):
    value = {"rectanglelabels": ["cat"], "x": 50, "y": 20, "width": 30, "height": 40}
    turned = tools.label_studio_result(0, value={**value, "rotation": 90})
    ellipse = tools.label_studio_result(
        1,
        type="ellipselabels",
        value={
            "x": 50,
            "y": 50,
            "radiusX": 25,
            "radiusY": 30,
            "rotation": 0,
            "ellipselabels": ["a"],
        },
    )
    found, problems = read(label_studio(tmp_path, turned, ellipse))
    # 12 by 8 pixels, turned by a right angle about (20, 4).
    np.testing.assert_allclose(found.images[0].boxes, [[12, 4, 20, 16], BOX], atol=1e-4)
    assert dict(found.outlines) == {"turned rectangle": 1, "ellipse": 1}
    assert not problems


def test_labels_apart_from_their_regions(tmp_path):
    shape = tools.label_studio_result(0, type="rectangle")
    del shape["value"]["rectanglelabels"]
    label = {**shape, "type": "labels", "value": {**shape["value"], "labels": ["dog"]}}
    choice = {"type": "choices", "from_name": "c", "value": {"choices": ["sunny"]}}
    found, problems = read(label_studio(tmp_path, shape, label, choice))
    assert found.classes.names == ("dog",)
    np.testing.assert_allclose(found.images[0].boxes, [BOX], atol=1e-4)
    assert not problems


def test_results_that_give_no_size_take_that_of_the_image(tmp_path):
    result = tools.label_studio_result(0)
    del result["original_width"], result["original_height"]
    found, _ = read(label_studio(tmp_path, result))
    np.testing.assert_allclose(found.images[0].boxes, [BOX], atol=1e-4)


def test_what_label_studio_has_besides_boxes_is_counted(tmp_path):
    key = tools.label_studio_result(
        0, type="keypointlabels", value={"x": 1, "y": 2, "width": 1, "keypointlabels": ["a"]}
    )
    brush = tools.label_studio_result(
        1, type="brushlabels", value={"format": "rle", "rle": [1, 2], "brushlabels": ["a"]}
    )
    both = tools.label_studio_result(2)
    both["value"]["rectanglelabels"] = ["cat", "old"]
    found, problems = read(label_studio(tmp_path, key, brush, both))
    assert len(found.images[0].boxes) == 1
    said = [p.message for p in problems]
    assert "left out: 1 objects of the kind keypointlabels, which have no box here" in said
    assert "left out: 1 objects of the kind brushlabels, which have no box here" in said
    assert any("1 further labels of regions that have several" in text for text in said)


def test_the_latest_annotation_of_a_task_counts(tmp_path):
    root = label_studio(tmp_path, tools.label_studio_result(0))
    (task,) = json.loads((root / "export.json").read_text())
    (first,) = task["annotations"]
    later = {**first, "updated_at": "2024-06-01T10:00:00Z", "result": []}
    cancelled = {**first, "updated_at": "2024-07-01T10:00:00Z", "was_cancelled": True}
    task["annotations"] = [later, first, cancelled]
    tools.write_json(root / "export.json", [task])
    assert len(read(root)[0].images[0].boxes) == 0
    first["ground_truth"] = True
    tools.write_json(root / "export.json", [task])
    assert len(read(root)[0].images[0].boxes) == 1


def test_tasks_that_nobody_finished_are_counted(tmp_path):
    root = label_studio(tmp_path, tools.label_studio_result(0))
    layouts.pictures(root / "images", [1, 2])
    tasks = json.loads((root / "export.json").read_text())
    for n in (1, 2):
        tasks.append({**tools.label_studio_task(n, f"x/p{n}.png", []), "annotations": []})
    tools.write_json(root / "export.json", tasks)
    found, problems = read(root)
    assert len(found) == 1
    (problem,) = problems
    assert "2 images without a finished annotation" in problem.message


def test_turned_boxes_and_other_shapes_of_cvat(tmp_path):
    box = 'label="cat" xtl="14" ytl="0" xbr="26" ybr="20"'
    points = "".join(
        f'<points label="p" outside="0" points="{x},{y}"/>' for x, y in ((10, 4), (30, 16))
    )
    shapes = [
        f'<box {box} rotation="90"/>',
        '<ellipse label="cat" cx="20" cy="10" rx="10" ry="6"/>',
        '<polyline label="cat" points="10,4;30,16"/>',
        '<cuboid label="cat" xtl1="10" ytl1="4" xbl1="10" ybl1="16" xtr1="20" ytr1="4" xbr1="20" '
        'ybr1="16" xtl2="30" ytl2="4" xbl2="30" ybl2="16" xtr2="25" ytr2="4" xbr2="25" ybr2="16"/>',
        f'<skeleton label="cat">{points}<points label="q" outside="1" points="0,0"/></skeleton>',
        '<points label="cat" points="3,4;5,6"/>',
        '<tag label="sunny"/>',
    ]
    found, problems = read(cvat(tmp_path, "\n".join(shapes)))
    np.testing.assert_allclose(found.images[0].boxes, [BOX] * 5, atol=1e-4)
    assert set(found.outlines) == {"turned box", "ellipse", "polyline", "cuboid", "skeleton"}
    assert [(p.line, p.message) for p in problems] == [
        (9, "left out: 1 objects of shape points, which have no box"),
        (10, "left out: 1 tags of whole images"),
    ]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ('<box label="cat" xtl="a" ytl="0" xbr="2" ybr="3"/>', "numbers that are missing or wrong"),
        ('<box xtl="1" ytl="0" xbr="2" ybr="3"/>', "a box without a label"),
        ('<polygon label="cat" points=""/>', "the polygon of the cat has numbers"),
        ('<blob label="cat"/>', "the unknown shape <blob>"),
    ],
)
def test_wrong_shapes_of_cvat_are_named(tmp_path, shape, message):
    with pytest.raises(UserError, match=f"4: .*{message}"):
        open_split(DataConfig(), cvat(tmp_path, shape), "train")


def test_frames_of_a_video_without_their_images_say_what_to_export(tmp_path):
    tools.cvat_video(tmp_path)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match=r"frame_000000\.PNG is nowhere in .*Save images"):
        open_split(DataConfig(), tmp_path, "train")


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
    tools.write_json(tmp_path / "animals.json", document)
    with pytest.raises(UserError) as caught:
        open_split(DataConfig(), tmp_path, "train")
    assert message in str(caught.value)


def test_regions_of_via_3_without_a_box_are_counted(tmp_path):
    tools.via_3(tmp_path)
    document = json.loads((tmp_path / "animals.json").read_text())
    document["metadata"]["1_aBcD"]["xy"] = [1, 3, 4]
    document["metadata"]["2_aBcD"]["xy"] = []
    tools.write_json(tmp_path / "animals.json", document)
    found, problems = read(tmp_path)
    assert sum(len(record.boxes) for record in found.images) == layouts.COUNT - 2
    assert [
        p.message.removeprefix("left out: ").partition(" or ")[0].partition(",")[0]
        for p in problems
    ] == ["1 objects of shape point", "1 notes on whole images"]


def test_boxes_of_an_imagefolder_may_be_corners(tmp_path):
    layouts.pictures(tmp_path, [0])
    row = {"file_name": "p0.png", "objects": {"bbox": [BOX], "category": ["cat"]}}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    config = DataConfig()
    config.hf.box_format = "xyxy"
    found = open_split(config, tmp_path, "train")
    np.testing.assert_allclose(found.images[0].boxes, [BOX])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "it is not valid JSON"),
        ("[]", "it is [], not an object of JSON"),
        ('{"objects": {"bbox": []}, "file_name": ""}', "it has no 'file_name'"),
        ('{"file_name": "p1.png", "objects": {"bbox": [[1, 2, 3, 4]]}}', "no list of classes"),
        (
            '{"file_name": "p1.png", "objects": {"bbox": [[1, 2, 3, 4]], "category": []}}',
            "it has 1 boxes but 0 classes",
        ),
        (
            '{"file_name": "p1.png", "objects": {"bbox": [[1, 2, 3]], "category": [1]}}',
            "its box is [1, 2, 3], not four numbers",
        ),
    ],
)
def test_wrong_rows_of_an_imagefolder_are_named(tmp_path, row, message):
    layouts.pictures(tmp_path, [0, 1])
    good = json.dumps(tools.imagefolder_row(0))
    (tmp_path / "metadata.jsonl").write_text(f"{good}\n{row}\n")
    report = Report()
    open_split(DataConfig(), tmp_path, "train", report=report)
    (problem,) = report.errors()
    assert problem.line == 2
    assert message in problem.message


def test_supervisely_points_are_counted_and_bitmaps_checked(tmp_path):
    layouts.pictures(tmp_path / "ds" / "img", [0])
    point = {"classTitle": "cat", "geometryType": "point", "points": {"exterior": [[1, 2]]}}
    bitmap = {
        "classTitle": "cat",
        "geometryType": "bitmap",
        "bitmap": {"data": "?", "origin": [1, 2]},
    }
    value = {**tools.supervisely_file(0), "objects": [point, bitmap]}
    tools.write_json(tmp_path / "ds" / "ann" / "p0.json", value)
    report = Report()
    with pytest.raises(UserError, match="the bitmap of the cat is damaged"):
        open_split(DataConfig(), tmp_path, "train", report=report)
    value["objects"] = [point, tools.supervisely_file(0)["objects"][0]]
    tools.write_json(tmp_path / "ds" / "ann" / "p0.json", value)
    found, problems = read(tmp_path)
    assert len(found.images[0].boxes) == 1
    assert "1 objects of shape point, which have no box here" in problems[0].message


def test_pictures_of_any_orientation(tmp_path):
    """The size may be that of the picture as it is stored, or as it is seen."""
    layouts.pictures(tmp_path, [0])
    picture = Image.new("RGB", (20, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "p0.png", exif=exif)
    tools.write_json(tmp_path / "p0.json", tools.labelme_file(0, [tools.RECTANGLE], "p0.png"))
    found, problems = read(tmp_path)
    assert not problems
    assert (found.images[0].width, found.images[0].height) == (40, 20)


@needs_real_data
@pytest.mark.parametrize("kind", ["createml", "labelme", "cvat"])
def test_real_pictures_have_the_boxes_of_their_voc_files(tmp_path, kind):
    wanted = read_voc(REAL / "VOCdevkit", "trainval")
    entries = []
    for record in wanted.images[:12]:
        shutil.copy(record.path, tmp_path / record.path.name)
        names = [wanted.classes.name(int(label)) for label in record.labels]
        entries.append((record, list(zip(names, record.boxes.tolist(), strict=True))))
    if kind == "createml":
        tools.write_json(
            tmp_path / "all.json",
            [
                {
                    "image": record.path.name,
                    "annotations": [
                        {
                            "label": name,
                            "coordinates": {
                                "x": (x1 + x2) / 2,
                                "y": (y1 + y2) / 2,
                                "width": x2 - x1,
                                "height": y2 - y1,
                            },
                        }
                        for name, (x1, y1, x2, y2) in objects
                    ],
                }
                for record, objects in entries
            ],
        )
    for record, objects in entries if kind == "labelme" else ():
        shapes = [
            {"label": name, "shape_type": "rectangle", "points": [[x1, y1], [x2, y2]]}
            for name, (x1, y1, x2, y2) in objects
        ]
        document = tools.labelme_file(0, shapes, record.path.name)
        document |= {"imageWidth": record.width, "imageHeight": record.height}
        tools.write_json(tmp_path / f"{record.path.stem}.json", document)
    if kind == "cvat":
        images = "".join(
            f'<image name="{record.path.name}" width="{record.width}" height="{record.height}">'
            + "".join(
                f'<box label="{name}" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"/>'
                for name, (x1, y1, x2, y2) in objects
            )
            + "</image>"
            for record, objects in entries
        )
        (tmp_path / "annotations.xml").write_text(f"<annotations>{images}</annotations>")
    assert detect_format(tmp_path) == kind
    found = open_split(DataConfig(), tmp_path, "train")
    assert not found.problems
    by_name = {record.path.name: record for record in found.images}
    for record, objects in entries:
        np.testing.assert_allclose(by_name[record.path.name].boxes, record.boxes, atol=1e-3)
        labels = by_name[record.path.name].labels.tolist()
        assert [found.classes.name(label) for label in labels] == [name for name, _ in objects]


@pytest.mark.parametrize("value", [None, True, 1.5, "a", [None], {"a": None}])
@pytest.mark.parametrize(
    ("make", "file", "steps"),
    [
        (tools.via_export, "via_region_data.json", ("p0.png200", "regions")),
        (tools.via_project, "via_project_1Dec2024_10h5m.json", ("_via_attributes", "region")),
        (tools.datumaro, "annotations/default.json", ("categories", "label", "labels")),
        (tools.datumaro, "annotations/default.json", ("items", 0, "image", "size")),
        (
            tools.label_studio,
            "project-1-at-2024-05-01-10-00-0a1b2c3d.json",
            (0, "annotations", 0, "result"),
        ),
        (tools.labelme, "p0.json", ("shapes", 0, "points")),
        (tools.createml_labelimg, "pictures.json", (0, "annotations", 0)),
    ],
)
def test_values_of_another_type_are_no_exceptions(tmp_path, make, file, steps, value):
    make(tmp_path)
    document = json.loads((tmp_path / file).read_text())
    inner = document
    for step in steps[:-1]:
        inner = inner[step]
    inner[steps[-1]] = value
    tools.write_json(tmp_path / file, document)
    with contextlib.suppress(UserError):
        open_split(DataConfig(), tmp_path, "train", report=Report())


def test_regions_of_several_attributes_and_images(tmp_path):
    """Each image has text for every attribute."""
    layouts.pictures(tmp_path, [0, 1])
    images = {}
    for number in (0, 1):
        image = tools.via_image(number)
        image["regions"][0]["region_attributes"] |= {"label": "x", "color": "red"}
        images[f"p{number}"] = image
    tools.write_json(tmp_path / "via.json", images)
    assert open_split(DataConfig(), tmp_path, "train").classes.names == ("x",)
