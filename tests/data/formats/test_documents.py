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
from tests.helpers import platform_layouts as platforms
from tests.helpers import tool_layouts as tools
from tests.helpers.documents import read
from tests.helpers.real_data import REAL, needs_real_data

READ = ("LabelImg CreateML", "labelme", "VIA export", "Label Studio JSON")


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
        (platforms.label_studio, "project-1-at-2024-05-01-10-00-0a1b2c3d.json"),
        (platforms.cvat_images, "annotations.xml"),
        (platforms.imagefolder_with_card, "metadata.jsonl"),
        (platforms.imagefolder_csv, "metadata.csv"),
        (platforms.datumaro, "annotations/default.json"),
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
    layouts.write_json(tmp_path / "a.json", entries)
    with pytest.raises(UserError, match=r"p0\.png is described twice, first by .*a\.json"):
        open_split(DataConfig(), tmp_path, "train")


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for number, folder in enumerate(("left", "right")):
        layouts.pictures(tmp_path / "images" / folder, [0])
        document = tools.labelme_file(number, [tools.RECTANGLE], f"/home/me/{folder}/p0.png")
        layouts.write_json(tmp_path / "labels" / f"{folder}.json", document)
    found = open_split(DataConfig(), tmp_path, "train")
    labels = {r.path.parent.name: r.labels.tolist() for r in found.images}
    assert labels == {"left": [1], "right": [2]}


def test_files_of_no_split_beside_others_are_counted(tmp_path):
    tools.createml_roboflow(tmp_path)
    layouts.write_json(tmp_path / "more.json", [tools.createml_entry(0)])
    found, problems = read(tmp_path)
    assert len(found) == 4
    assert "1 annotation files of no split, where others have one" in problems[-1].message


def test_a_named_file_is_read_alone(tmp_path):
    tools.createml_labelimg(tmp_path)
    layouts.write_json(tmp_path / "two.json", [tools.createml_entry(n) for n in (0, 1)])
    config = DataConfig(train_annotations="two.json")
    found = open_split(config, tmp_path, "train")
    assert len(found) == 2
    assert not found.problems


def test_pictures_of_any_orientation(tmp_path):
    """The size may be that of the picture as it is stored, or as it is seen."""
    layouts.pictures(tmp_path, [0])
    picture = Image.new("RGB", (20, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "p0.png", exif=exif)
    layouts.write_json(tmp_path / "p0.json", tools.labelme_file(0, [tools.RECTANGLE], "p0.png"))
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
        layouts.write_json(
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
        layouts.write_json(tmp_path / f"{record.path.stem}.json", document)
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
        (platforms.datumaro, "annotations/default.json", ("categories", "label", "labels")),
        (platforms.datumaro, "annotations/default.json", ("items", 0, "image", "size")),
        (
            platforms.label_studio,
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
    layouts.write_json(tmp_path / file, document)
    with contextlib.suppress(UserError):
        open_split(DataConfig(), tmp_path, "train", report=Report())
