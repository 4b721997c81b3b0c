"""Reading COCO-format data: tiny hand-made files, and the real ones where they are present."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.data import find_annotations, find_images_folder, read_coco
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError
from tests.helpers import real_data

REAL = real_data.REAL / "coco"


def document():
    """Two images of 40x30 and a third, 20x20, without objects; category ids are not contiguous."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.png", "width": 40, "height": 30},
            {"id": 5, "file_name": "c.png", "width": 20, "height": 20},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 90,
                "bbox": [1, 2, 10, 20],
                "area": 77.5,
                "iscrowd": 0,
            },
            {"id": 2, "image_id": 7, "category_id": 4, "bbox": [30, 20, 5, 5], "iscrowd": 1},
            {"id": 3, "image_id": 3, "category_id": 4, "bbox": [35, -6, 10, 10], "iscrowd": 0},
            {"id": 4, "image_id": 3, "category_id": 4, "bbox": [5, 5, 0, 8], "iscrowd": 0},
            {"id": 5, "image_id": 3, "category_id": 90, "bbox": [50, 5, 8, 8], "iscrowd": 0},
        ],
        "categories": [{"id": 90, "name": "dog"}, {"id": 4, "name": "cat"}],
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name, size in (("a", (40, 30)), ("b", (40, 30)), ("c", (20, 20))):
        Image.new("RGB", size).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def write(folder, content, name="instances_train.json"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_boxes_labels_crowds_and_empty_images(folder):
    found = read_coco(write(folder, document()))
    assert found.classes.names == ("cat", "dog")  # In the order of the ids.
    assert [found.classes.category_id(label) for label in (1, 2)] == [4, 90]
    assert found.classes.num_classes == 3
    assert [image.image_id for image in found.images] == [7, 3, 5]
    first, second, third = found.images
    np.testing.assert_array_equal(first.boxes, [[1, 2, 11, 22], [30, 20, 35, 25]])
    assert first.boxes.dtype == np.float32
    assert first.labels.tolist() == [2, 1]
    assert first.crowd.tolist() == [False, True]
    assert first.areas.tolist() == [77.5, 25.0]  # The file's, and the box's where it has none.
    # Clipped on two sides; the one without width and the one outside are dropped.
    np.testing.assert_array_equal(second.boxes, [[35, 0, 40, 4]])
    assert third.boxes.shape == (0, 4)
    assert third.labels.shape == (0,)
    assert (found.clipped, found.dropped) == (1, 2)
    assert found.summary() == (
        "3 images (1 without objects), 3 objects of 2 classes, 1 of them crowds, "
        "1 boxes clipped to their image, 2 boxes without area dropped"
    )


def test_boxes_that_are_not_finite_are_dropped(folder):
    content = document()
    content["annotations"] = [
        {"image_id": 7, "category_id": 4, "bbox": [1, 1, float("nan"), 3]},
        {"image_id": 7, "category_id": 4, "bbox": [1, 1, float("inf"), 3]},
        {"image_id": 7, "category_id": 4, "bbox": [1, 1, 2, 3]},
    ]
    found = read_coco(write(folder, content))
    np.testing.assert_array_equal(found.images[0].boxes, [[1, 1, 3, 4]])
    assert found.dropped == 2


def test_rounding_out_of_the_image_is_clipped_without_a_word(folder):
    content = document()
    content["annotations"] = [{"image_id": 7, "category_id": 4, "bbox": [30, 20, 10.4, 10.9]}]
    found = read_coco(write(folder, content))
    np.testing.assert_array_equal(found.images[0].boxes, [[30, 20, 40, 30]])
    assert found.clipped == 0


def test_chosen_classes_get_their_own_order_and_others_are_left_out(folder):
    path = write(folder, document())
    found = read_coco(path, classes=["dog"])
    assert found.classes.names == ("dog",)
    assert found.classes.category_ids == (90,)
    assert [image.labels.tolist() for image in found.images] == [[1], [], []]
    assert found.summary().endswith("3 boxes of other classes left out")
    both = read_coco(path, classes=["dog", "cat"])
    assert [image.labels.tolist() for image in both.images] == [[1, 2], [2], []]


def test_classes_that_the_file_does_not_have(folder):
    path = write(folder, document())
    with pytest.raises(
        UserError, match=r"no class 'dogs' \(did you mean 'dog'\?\); it has cat, dog"
    ):
        read_coco(path, classes=["cat", "dogs"])
    found = read_coco(path, classes=["bird", "dog"], missing_classes_ok=True)
    assert [image.labels.tolist() for image in found.images] == [[2], [], []]
    assert found.classes.category_ids == (91, 90)  # Not the id of another category.
    with pytest.raises(UserError, match="no class 'bird'"):
        read_coco(path, classes=["bird"], missing_classes_ok=True)


def remove(content, section, index, key):
    del content[section][index][key]


def put(content, section, index, key, value):
    content[section][index][key] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("annotations"), "no list 'annotations'"),
        (lambda c: c["images"].clear(), "lists no images"),
        (lambda c: c["categories"].clear(), "'categories' is empty"),
        (lambda c: remove(c, "images", 1, "file_name"), r"images\[1\] \(id 3\) has no 'file_name'"),
        (lambda c: put(c, "images", 1, "id", 7), r"images\[1\]: the id 7 is used twice"),
        (lambda c: put(c, "images", 1, "id", None), r"images\[1\] has no 'id'"),
        (lambda c: put(c, "categories", 1, "id", 90), r"the id 90 is used twice"),
        (lambda c: put(c, "categories", 1, "name", "dog"), r"the name 'dog' is used twice"),
        (
            lambda c: put(c, "annotations", 2, "image_id", 8),
            r"annotations\[2\] \(id 3\): no image has the id 8",
        ),
        (
            lambda c: put(c, "annotations", 2, "category_id", 5),
            r"annotations\[2\] \(id 3\): no category has the id 5",
        ),
        (lambda c: put(c, "annotations", 0, "bbox", [1, 2, 3]), r"'bbox' is \[1, 2, 3\]"),
        (lambda c: put(c, "annotations", 0, "bbox", [1, 2, 3, "4"]), "not four numbers"),
    ],
)
def test_mistakes_are_named(folder, change, message):
    content = document()
    change(content)
    path = write(folder, content)
    with pytest.raises(UserError, match=message) as error:
        read_coco(path)
    assert str(path) in str(error.value)


def test_of_many_mistakes_the_first_are_shown(folder):
    content = document()
    for annotation in content["annotations"]:
        annotation["category_id"] = 1
    with pytest.raises(UserError, match="; and 2 more"):
        read_coco(write(folder, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1, 2]", "top level is not an object"), ("{", "not valid JSON"), ("", "not valid JSON")],
)
def test_files_that_are_not_coco(folder, content, message):
    with pytest.raises(UserError, match=message):
        read_coco(write(folder, content))


def test_missing_images_are_named(folder):
    path = write(folder, document())
    (folder / "images" / "b.png").unlink()
    (folder / "images" / "c.png").unlink()
    with pytest.raises(UserError, match=r"b\.png does not exist; .*c\.png does not exist"):
        read_coco(path)
    (folder / "elsewhere").mkdir()
    with pytest.raises(UserError, match=r"none of the 3 images .* the first is a\.png"):
        read_coco(path, folder / "elsewhere")


def test_problems_have_their_lines_and_broken_images_are_left_out(folder):
    content = document()
    content["annotations"][0]["category_id"] = 5
    content["annotations"].append({"id": 2, "image_id": 5, "category_id": 4, "bbox": [1, 1, 5, 5]})
    path = write(folder, json.dumps(content, indent=1))
    lines = path.read_text().splitlines()
    report = Report()
    found = read_coco(path, report=report)
    # The id 2 is used by images 7 and 5; the latter is the one that repeats it.
    assert [image.image_id for image in found.images] == [3]
    assert found.skipped == 2
    first, second = report.errors()
    assert "annotations[0] (id 1): no category has the id 5" in first.message
    assert "annotations[5] (id 2): the id 2 is used twice" in second.message
    for problem, text in ((first, '"id": 1,'), (second, '"id": 2,')):
        assert problem.file == path
        assert lines[problem.line - 1].strip() == "{"
        assert lines[problem.line].strip() == text
    warnings = [problem.message for problem in report.warnings()]
    assert len(warnings) == 3
    assert "annotations[2] (id 3): the box [35, -6, 45, 4] reaches out of the image" in warnings[0]
    assert "has no area" in warnings[1]
    assert "has nothing inside" in warnings[2]
    assert all(str(problem).startswith(f"{path}:") for problem in report.problems)


def test_files_of_test_images_have_no_annotations(folder):
    content = document()
    del content["annotations"]
    with pytest.raises(UserError, match="no list 'annotations'"):
        read_coco(write(folder, content, "instances_test.json"))
    found = read_coco(write(folder, content, "image_info_test.json"))
    assert not found.annotated
    assert found.summary() == "3 images without annotations"


def test_sizes_that_the_file_does_not_have_come_from_the_images(folder):
    content = document()
    for entry in content["images"]:
        del entry["width"], entry["height"]
    found = read_coco(write(folder, content))
    assert [(image.width, image.height) for image in found.images] == [(40, 30), (40, 30), (20, 20)]


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train.json", "images/train"),
        ("instances_train.json", "images"),
        ("train.json", "."),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_usual_layouts_are_found(tmp_path, annotations, images):
    path = write(tmp_path, document(), annotations)
    folder = tmp_path / images
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.png").touch()
    assert find_annotations(tmp_path, "train") == path
    assert find_images_folder(tmp_path, path, "a.png").resolve() == folder.resolve()


def test_layouts_that_are_not_found_or_not_clear(tmp_path):
    with pytest.raises(UserError, match="data folder .* does not exist"):
        find_annotations(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match="no COCO annotation file for val"):
        find_annotations(tmp_path, "val")
    write(tmp_path, document(), "annotations/instances_val2014.json")
    path = write(tmp_path, document(), "annotations/instances_val2017.json")
    with pytest.raises(UserError, match=r"val2014\.json, instances_val2017\.json; choose one"):
        find_annotations(tmp_path, "val")
    with pytest.raises(UserError, match=r"are in none of .*looked for a\.png"):
        find_images_folder(tmp_path, path, "a.png")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real images are not in {REAL}")
def test_real_coco_annotations():
    counts = {"train": (96, 704), "val": (32, 225)}
    for split, (images, objects) in counts.items():
        found = read_coco(find_annotations(REAL, split))
        assert len(found) == images
        assert sum(len(image.boxes) for image in found.images) == objects
        assert len(found.classes) == 80
        assert found.classes.category_id(80) == 90
        assert found.classes.name(1) == "person"
        for image in found.images:
            assert (image.boxes >= 0).all()
            assert (image.boxes <= [image.width, image.height] * 2).all()
            assert (image.boxes[:, 2:] > image.boxes[:, :2]).all()
