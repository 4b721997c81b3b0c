"""What is wrong, left out or unusual in files of Label Studio, CVAT and ImageFolder."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("lxml", reason="lxml comes with the extra train")
from rcnn_ext.data import DataConfig, open_split
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError
from tests.helpers import layouts
from tests.helpers import platform_layouts as platforms
from tests.helpers.documents import BOX, cvat, label_studio, read


def test_turned_rectangles_and_ellipses_of_label_studio(tmp_path):
    value = {"rectanglelabels": ["cat"], "x": 50, "y": 20, "width": 30, "height": 40}
    turned = platforms.label_studio_result(0, value={**value, "rotation": 90})
    ellipse = platforms.label_studio_result(
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
    shape = platforms.label_studio_result(0, type="rectangle")
    del shape["value"]["rectanglelabels"]
    label = {**shape, "type": "labels", "value": {**shape["value"], "labels": ["dog"]}}
    choice = {"type": "choices", "from_name": "c", "value": {"choices": ["sunny"]}}
    found, problems = read(label_studio(tmp_path, shape, label, choice))
    assert found.classes.names == ("dog",)
    np.testing.assert_allclose(found.images[0].boxes, [BOX], atol=1e-4)
    assert not problems


def test_results_that_give_no_size_take_that_of_the_image(tmp_path):
    result = platforms.label_studio_result(0)
    del result["original_width"], result["original_height"]
    found, _ = read(label_studio(tmp_path, result))
    np.testing.assert_allclose(found.images[0].boxes, [BOX], atol=1e-4)


def test_what_label_studio_has_besides_boxes_is_counted(tmp_path):
    key = platforms.label_studio_result(
        0, type="keypointlabels", value={"x": 1, "y": 2, "width": 1, "keypointlabels": ["a"]}
    )
    brush = platforms.label_studio_result(
        1, type="brushlabels", value={"format": "rle", "rle": [1, 2], "brushlabels": ["a"]}
    )
    both = platforms.label_studio_result(2)
    both["value"]["rectanglelabels"] = ["cat", "old"]
    found, problems = read(label_studio(tmp_path, key, brush, both))
    assert len(found.images[0].boxes) == 1
    said = [p.message for p in problems]
    assert "left out: 1 objects of the kind keypointlabels, which have no box here" in said
    assert "left out: 1 objects of the kind brushlabels, which have no box here" in said
    assert any("1 further labels of regions that have several" in text for text in said)


def test_the_latest_annotation_of_a_task_counts(tmp_path):
    root = label_studio(tmp_path, platforms.label_studio_result(0))
    (task,) = json.loads((root / "export.json").read_text())
    (first,) = task["annotations"]
    later = {**first, "updated_at": "2024-06-01T10:00:00Z", "result": []}
    cancelled = {**first, "updated_at": "2024-07-01T10:00:00Z", "was_cancelled": True}
    task["annotations"] = [later, first, cancelled]
    layouts.write_json(root / "export.json", [task])
    assert len(read(root)[0].images[0].boxes) == 0
    first["ground_truth"] = True
    layouts.write_json(root / "export.json", [task])
    assert len(read(root)[0].images[0].boxes) == 1


def test_tasks_that_nobody_finished_are_counted(tmp_path):
    root = label_studio(tmp_path, platforms.label_studio_result(0))
    layouts.pictures(root / "images", [1, 2])
    tasks = json.loads((root / "export.json").read_text())
    for n in (1, 2):
        tasks.append({**platforms.label_studio_task(n, f"x/p{n}.png", []), "annotations": []})
    layouts.write_json(root / "export.json", tasks)
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
    platforms.cvat_video(tmp_path)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match=r"frame_000000\.PNG is nowhere in .*Save images"):
        open_split(DataConfig(), tmp_path, "train")


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
    good = json.dumps(platforms.imagefolder_row(0))
    (tmp_path / "metadata.jsonl").write_text(f"{good}\n{row}\n")
    report = Report()
    open_split(DataConfig(), tmp_path, "train", report=report)
    (problem,) = report.errors()
    assert problem.line == 2
    assert message in problem.message
