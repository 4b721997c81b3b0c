"""XML files of VOC's kind as other tools write them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lxml", reason="lxml comes with the extra train")

from rcnn_ext.cli import main
from rcnn_ext.data import DataConfig, detect_format, open_split, read_voc
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError
from tests.helpers import layouts

BOX = "<bndbox><xmin>11</xmin><ymin>5</ymin><xmax>30</xmax><ymax>16</ymax></bndbox>"


@pytest.fixture
def folder(tmp_path):
    """Writes pictures and XML files, by name, beside each other."""

    def folder(**files):
        for name, content in files.items():
            Image.new("RGB", (40, 20)).save(tmp_path / f"{name}.png")
            (tmp_path / f"{name}.xml").write_text(content)
        return tmp_path

    return folder


def annotation(*objects):
    size = "<size><width>40</width><height>20</height></size>"
    return f"<annotation>{size}{''.join(objects)}</annotation>"


@pytest.mark.parametrize(
    ("shape", "expected", "outline"),
    [
        (BOX, (10, 4, 30, 16), ""),
        (
            "<polygon><x1>10</x1><y1>4</y1><x2>30</x2><y2>4</y2><x3>20</x3><y3>16</y3></polygon>"
            + BOX,
            (10, 4, 30, 16),
            "",
        ),
        (
            "<polygon><x1>10</x1><y1>4</y1><x2>30</x2><y2>4</y2><x3>20</x3><y3>16</y3></polygon>",
            (10, 4, 30, 16),
            "polygon",
        ),
        (
            "<polygon><username>me</username><pt><x>10</x><y>4</y></pt><pt><x>30</x><y>16</y></pt>"
            "</polygon>",
            (10, 4, 30, 16),
            "polygon",
        ),
        (
            "<type>robndbox</type><robndbox><cx>20</cx><cy>10</cy><w>12</w><h>20</h>"
            f"<angle>{math.pi / 2}</angle></robndbox>",
            (10, 4, 30, 16),
            "robndbox",
        ),
    ],
)
def test_shapes(folder, shape, expected, outline):
    found = read_voc(folder(a=annotation(f"<object><name>cat</name>{shape}</object>")))
    np.testing.assert_allclose(found.images[0].boxes, [expected], atol=1e-4)
    assert dict(found.outlines) == ({outline: 1} if outline else {})
    assert ("boxes taken around outlines: 1 of shape" in found.summary()) == bool(outline)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<html><annotation/></html>", "begins with <html> instead of <annotation>"),
        ("<annotations><annotation/></annotations>", "begins with <annotations>"),
        ("<annotation></annotation>", "its <annotation> has none of <object>, <filename>"),
        ("<annotation><note>hello</note></annotation>", "has none of <object>"),
        (
            f"<annotation><size/><objects><object><name>a</name>{BOX}</object></objects>"
            "</annotation>",
            "<object> elements are not directly in <annotation>",
        ),
    ],
)
def test_xml_that_is_no_annotation_is_no_background(folder, content, message):
    root = folder(a=annotation(f"<object><name>cat</name>{BOX}</object>"), b=content)
    report = Report()
    found = open_split(DataConfig(format="voc"), root, "train", report=report)
    assert (len(found), found.skipped) == (1, 1)
    (problem,) = report.errors()
    assert problem.file == root / "b.xml"
    assert message in problem.message


def test_a_wrong_outline_is_named(folder):
    shape = "<polygon><x1>10</x1><y1>a</y1></polygon>"
    root = folder(a=annotation(f"<object><name>cat</name>{shape}</object>"))
    with pytest.raises(UserError, match=r"a\.xml:1: the cat has a wrong polygon"):
        read_voc(root)


def test_deleted_objects_are_counted(folder):
    kept, gone = (
        f"<object><name>cat</name>{more}{BOX}</object>" for more in ("", "<deleted>1</deleted>")
    )
    found = read_voc(folder(a=annotation(kept, gone)))
    assert len(found.images[0].boxes) == 1
    assert "1 objects that are marked as deleted" in found.problems[0].message


def test_pictures_without_xml_are_counted(folder, capsys):
    root = folder(a=annotation(f"<object><name>cat</name>{BOX}</object>"))
    for name in ("b.png", "c.JPG"):
        Image.new("RGB", (8, 8)).save(root / name)
    assert main(["check", str(root)]) == 0
    said = capsys.readouterr().out
    assert "b.png: warning: left out: 2 images that have no annotations, the first here" in said


@pytest.mark.parametrize(("picture", "xml"), [("a.PNG", "a.xml"), ("a.png", "a.XML")])
def test_suffixes_in_any_case(tmp_path, picture, xml):
    Image.new("RGB", (40, 20)).save(tmp_path / picture)
    (tmp_path / xml).write_text(annotation(f"<object><name>cat</name>{BOX}</object>"))
    assert detect_format(tmp_path) == "voc"
    assert len(open_split(DataConfig(), tmp_path, "train")) == 1


def test_of_two_pictures_the_annotation_names_its_own(tmp_path):
    for suffix, size in ((".jpg", (10, 10)), (".png", (40, 20))):
        Image.new("RGB", size).save(tmp_path / f"a{suffix}")
    xml = annotation("<filename>C:\\me\\a.png</filename>", f"<object><name>x</name>{BOX}</object>")
    (tmp_path / "a.xml").write_text(xml)
    assert open_split(DataConfig(), tmp_path, "train").images[0].path.name == "a.png"


def test_lists_may_have_suffixes_and_spaces(tmp_path):
    layouts.pictures(tmp_path / "JPEGImages")
    layouts.voc_xml(tmp_path / "Annotations")
    for folder, suffix in (("JPEGImages", "png"), ("Annotations", "xml")):
        path = tmp_path / folder / f"p1.{suffix}"
        path.rename(path.with_name(f"my picture 1.{suffix}"))
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("p0.png\nmy picture 1\np2  1\n")
    found = open_split(DataConfig(), tmp_path, "train")
    assert [record.path.stem for record in found.images] == ["p0", "my picture 1", "p2"]


def test_a_folder_is_known_by_any_of_its_first_files(tmp_path):
    layouts.labelimg_voc(tmp_path)
    (tmp_path / "a.xml").write_text("<html/>")
    assert detect_format(tmp_path) == "voc"
    with pytest.raises(UserError, match=r"a\.xml.*begins with <html>"):
        open_split(DataConfig(), tmp_path, "train")


def test_lists_name_pictures_with_spaces_and_flags_are_no_part_of_names(tmp_path):
    root = tmp_path / "data"
    names = ("a", "a 1", "a -1", "photo (2) x")
    layouts.pictures(root / "JPEGImages", range(4))
    layouts.voc_xml(root / "Annotations", range(4))
    for number, name in enumerate(names):
        (root / "JPEGImages" / f"p{number}.png").rename(root / "JPEGImages" / f"{name}.png")
        (root / "Annotations" / f"p{number}.xml").rename(root / "Annotations" / f"{name}.xml")
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(names))
    found = read_voc(root, "train")
    assert [record.path.stem for record in found.images] == list(names)
    (lists / "cat.txt").write_text("a  1\nphoto (2) x -1\n")
    (lists / "dog.txt").write_text("a -1 \n")
    (root / "Annotations" / "a -1.xml").unlink()
    assert [record.path.stem for record in read_voc(root, "cat").images] == ["a"]
    with pytest.raises(UserError, match="lists no images"):
        read_voc(root, "dog")
