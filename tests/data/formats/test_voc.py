from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.data.formats.voc import VocConfig, read_voc
from rcnn_ext.data.formats.voc_layout import voc_set_name
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError
from tests.helpers.real_data import REAL, needs_real_data

pytest.importorskip("lxml", reason="lxml comes with the extra train")


def object_xml(name="dog", box=(1, 1, 10, 10), extra=""):
    tags = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inner = "\n".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object>\n<name>{name}</name>\n{extra}<bndbox>\n{inner}\n</bndbox>\n</object>"


def image_xml(*objects, size=(40, 30)):
    width, height = size
    return "\n".join(
        [
            "<annotation>",
            f"<size>\n<width>{width}</width>\n<height>{height}</height>\n</size>",
            *objects,
            "</annotation>",
        ]
    )


@pytest.fixture
def make(tmp_path):
    """Writes a devkit: XML by name, and image sets by name."""

    def make(annotations, sets=None, year="VOC2007", size=(40, 30)):
        folder = tmp_path / "VOCdevkit" / year
        for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name, xml in annotations.items():
            if xml is not None:
                (folder / "Annotations" / f"{name}.xml").write_text(xml)
            Image.new("RGB", size).save(folder / "JPEGImages" / f"{name}.jpg")
        for name, entries in (sets or {}).items():
            (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(entries) + "\n")
        return tmp_path

    return make


def test_boxes_flags_and_classes(make):
    part = "<part><name>head</name><bndbox><xmin>2</xmin></bndbox></part>"
    flags = "<truncated>1</truncated>\n<difficult>1</difficult>\n"
    root = make(
        {
            "000012": image_xml(
                object_xml("dog", (1, 1, 40, 30), part), object_xml("cat", (5, 6, 7, 8), flags)
            ),
            "000007": image_xml(),
        },
        {"trainval": ["000012", "000007"]},
    )
    found = read_voc(root, "trainval")
    assert found.classes.names == ("cat", "dog")
    assert [record.image_id for record in found.images] == [12, 7]
    first, second = found.images
    # The first pixel is number 1, and the last belongs to the box.
    np.testing.assert_array_equal(first.boxes, [[0, 0, 40, 30], [4, 5, 7, 8]])
    assert first.labels.tolist() == [2, 1]
    assert first.difficult.tolist() == [False, True]
    assert first.truncated.tolist() == [False, True]
    assert second.boxes.shape == (0, 4)
    from_zero = read_voc(root, "trainval", config=VocConfig(one_based=False))
    np.testing.assert_array_equal(from_zero.images[0].boxes, [[1, 1, 40, 30], [5, 6, 7, 8]])


def test_given_classes_have_their_order_and_others_are_named(make):
    root = make(
        {"1": image_xml(object_xml("dog"), object_xml("horse"), object_xml("horsse"))},
        {"train": ["1"]},
    )
    report = Report()
    found = read_voc(root, "train", classes=["horse", "bird", "dog"], report=report)
    assert found.classes.names == ("horse", "bird", "dog")
    assert found.images[0].labels.tolist() == [3, 1]
    assert found.other == 1
    (problem,) = report.problems
    assert problem.severity == "warning"
    assert "unknown class 'horsse' (did you mean 'horse'?): 1 object" in problem.message
    lines = problem.file.read_text().splitlines()
    assert lines[problem.line - 1] == "<bndbox>"
    assert "horsse" in lines[problem.line - 2]


def test_years_are_read_together_or_chosen(make):
    make({"000001": image_xml(object_xml())}, {"trainval": ["000001"], "test": ["000001"]})
    root = make({"2008_000002": image_xml(object_xml())}, {"trainval": ["2008_000002"]}, "VOC2012")
    assert [r.image_id for r in read_voc(root, "trainval").images] == [1, 2008000002]
    assert len(read_voc(root, "test")) == 1
    assert len(read_voc(root, "trainval", config=VocConfig(years=[2012]))) == 1
    with pytest.raises(UserError, match=r"no VOC data of the years \[2010\]"):
        read_voc(root, "trainval", config=VocConfig(years=[2010]))
    with pytest.raises(UserError, match=r"no image set ImageSets/Main/val\.txt"):
        read_voc(root, "val")


def test_training_is_train_beside_val_and_trainval_otherwise(make):
    root = make({"1": image_xml(object_xml())}, {"trainval": ["1"], "train": ["1"]})
    assert voc_set_name(root, "train") == "trainval"
    assert voc_set_name(root, "val") is None
    make({}, {"val": ["1"]})
    assert voc_set_name(root, "train") == "train"
    assert voc_set_name(root, "val") == "val"


def test_image_sets_of_a_class_leave_out_images_without_it(make):
    root = make({n: image_xml(object_xml()) for n in "123"}, {"dog_train": ["1  1", "2 -1", "3 0"]})
    assert [r.image_id for r in read_voc(root, "dog_train").images] == [1, 3]


def test_lists_without_any_annotations_are_test_images(make):
    found = read_voc(make({"1": None, "2": None}, {"test": ["1", "2"]}), "test")
    assert not found.annotated
    assert [(r.width, r.height) for r in found.images] == [(40, 30)] * 2


@pytest.mark.parametrize(
    ("xml", "line", "message"),
    [
        (image_xml(object_xml(), size=(30, 40)), None, None),  # As a turned picture may be.
        (image_xml(object_xml(), size=(41, 30)), 2, r"given as 41x30, but 2\.jpg is 40x30 pixels"),
        (image_xml(size=("a", 30)), 2, "the size is not two numbers"),
        (image_xml(object_xml("")), 6, "an object without a name"),
        (image_xml("<object><name>cow</name></object>"), 6, "the cow has no bndbox"),
        (image_xml(object_xml(box=(1, "x", 3, 4))), 8, "ymin of the dog is 'x', not a number"),
        (image_xml(object_xml(box=(1, "nan", 3, 4))), 8, "ymin of the dog is 'nan'"),
        (
            "<annotation>\n<size>\n</annotation>",
            3,
            "not valid XML: Opening and ending tag mismatch",
        ),
        ("", 1, "not valid XML: Document is empty"),
        (
            '<!DOCTYPE a [<!ENTITY b "c">]>\n<annotation>&b;</annotation>',
            None,
            "refused: it declares entities",
        ),
        (
            '<!DOCTYPE a SYSTEM "http://localhost/a.dtd">\n<annotation/>',
            None,
            "refused: it refers to an external document type",
        ),
    ],
)
def test_broken_files_are_named_and_left_out(make, xml, line, message):
    good = image_xml(object_xml())
    root = make({"1": good, "2": xml, "3": good}, {"train": ["1", "2", "3"]})
    report = Report()
    found = read_voc(root, "train", report=report)
    if message is None:
        assert not report.problems
        return
    (problem,) = report.errors()
    assert problem.file.name == "2.xml"
    assert problem.line == line
    assert [r.image_id for r in found.images] == [1, 3]
    assert found.skipped == 1
    assert "1 broken images left out" in found.summary()
    with pytest.raises(UserError, match=message) as error:
        read_voc(root, "train")
    assert str(problem.file) in str(error.value)


def test_entities_are_never_expanded(make, tmp_path):
    """Neither those that grow without bounds nor those that name a file."""
    (tmp_path / "secret").write_text("dog")
    growing = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">' for i in range(12))
    for entities, use in (
        (f'<!ENTITY e0 "dog">{growing}', "&e12;"),
        (f'<!ENTITY e12 SYSTEM "{(tmp_path / "secret").as_uri()}">', "&e12;"),
    ):
        for xml in (image_xml(object_xml(use)), f'<annotation kind="{use}"/>'):
            root = make({"1": f"<!DOCTYPE a [{entities}]>{xml}"}, {"train": ["1"]})
            with pytest.raises(UserError, match="refused: it declares entities|not valid XML: "):
                read_voc(root, "train")


def test_a_document_type_without_entities_is_harmless(make):
    xml = "<!DOCTYPE annotation [<!ELEMENT annotation ANY>]>\n" + image_xml(object_xml())
    assert len(read_voc(make({"1": xml}, {"train": ["1"]}), "train").images[0].boxes) == 1


@pytest.mark.parametrize(
    "root", ['<annotation xmlns="http://example.org/a">', '<v:annotation xmlns:v="urn:v">']
)
def test_a_namespace_does_not_hide_objects(make, root):
    prefix = "v:" if "xmlns:v" in root else ""
    xml = image_xml(object_xml("cat", (5, 6, 7, 8))).replace("<annotation>", root)
    xml = xml.replace("</annotation>", f"</{prefix}annotation>")
    found = read_voc(make({"1": xml}, {"train": ["1"]}), "train")
    assert found.classes.names == ("cat",)
    np.testing.assert_array_equal(found.images[0].boxes, [[4, 5, 7, 8]])


def test_lists_that_are_wrong(make):
    good = image_xml(object_xml())
    root = make({"1": good, "2": None}, {"train": ["1", "2", "1", "4"]})
    report = Report()
    assert len(read_voc(root, "train", report=report)) == 1
    assert [(p.file.name, p.line) for p in report.errors()] == [
        ("train.txt", 3),
        ("train.txt", 2),
        ("train.txt", 4),
    ]
    assert "1 is listed twice, first at line 1" in report.errors()[0].message
    (root / "VOCdevkit/VOC2007/JPEGImages/1.jpg").unlink()
    with pytest.raises(UserError, match=r"1\.jpg does not exist|none of"):
        read_voc(root)


def test_sizes_that_are_not_given_come_from_the_picture(make):
    root = make({"1": image_xml(object_xml(), size=(0, 0))}, {"train": ["1"]})
    assert read_voc(root, "train").images[0].width == 40


@needs_real_data
def test_real_devkit():
    found = read_voc(REAL / "VOCdevkit", "trainval")
    assert len(found) == 30
    assert sum(len(r.boxes) for r in found.images) == 125
    assert sum(int(r.difficult.sum()) for r in found.images) == 20
    assert not found.problems
    assert len(read_voc(REAL, "test")) == 10
