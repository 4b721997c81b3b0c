"""Files made to take all time or memory, and what is no file at all."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from tests.fuzz.harness import run_command
from tests.helpers import layouts


def check(fuzzer, root, *more):
    """Return what the command says, after a look at how it ended."""
    assert run_command(["check", str(root), *more], fuzzer.folder) == ""
    return (fuzzer.folder / "output.txt").read_text(errors="replace")


def yolo(root, text):
    layouts.fiftyone_yolo(root)
    (root / "dataset.yaml").write_text(text)
    return root


BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n"
    for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB + "names: *l\n",
        "names: " + "[" * 5000 + "]" * 5000,
        "names: " + "{a: " * 5000 + "}" * 5000,
        "names: !!binary |\n  " + "QUJD" * 1000,
        "names: [!!binary QUJD, !!timestamp 2001-01-01, !!set {a, b}]\n",
        "names: &a [*a]\n",
        "names: !!python/object/apply:os.system [id]\n",
        "names: " + "9" * 100_000,
        "nc: 1e999\nnames: {0: cat, .nan: dog, 2001-01-01: bird}\n",
        "path: " + "/.." * 3000 + "\nnames: [cat, dog]\n",
        "train: '**/**/**/**/**/**/*'\nnames: [cat, dog]\n",
        'train: "\\0"\nnames: [cat, dog]\n',
        'train: "\\ud800"\nnames: [cat, dog]\n',
        "train: " + "x" * 5000 + "\nnames: [cat, dog]\n",
        "\t\x00\x01",
    ],
    ids=range(15),
)
def test_yaml(fuzzer, tmp_path, text):
    root = yolo(tmp_path / "data", text)
    check(fuzzer, root)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    check(fuzzer, fuzzer.support / "data", "--recipe", str(recipe))


def voc(root, xml):
    layouts.labelimg_voc(root)
    (root / "p0.xml").write_bytes(xml)
    return root


def test_xml(fuzzer, tmp_path):
    name = b"<annotation><object><name>%s</name></object></annotation>"
    for index, xml in enumerate(
        (
            name % (b"A&amp;" * 2_000_000),
            b"<a>" * 100_000,
            b"<annotation " + b" ".join(b'a%d="x"' % n for n in range(100_000)) + b"/>",
            b'<?xml version="1.0" encoding="utf-7"?><annotation/>',
            b'<?xml version="1.0" encoding="no-such"?><annotation/>',
            b'<?xml version="1.0" encoding="rot13"?><annotation/>',
            b'<?xml version="1.0" encoding="zlib"?><annotation/>',
            b'<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>',
            b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>',
            name % (b"9" * 1_000_000),
        )
    ):
        root = voc(tmp_path / str(index), xml)
        assert "p0.xml" in check(fuzzer, root), xml[:80]


def coco(root, document):
    layouts.pictures(root / "data")
    (root / "labels.json").write_text(json.dumps(document))
    return root


def test_json(fuzzer, tmp_path):
    images = [{"id": 0, "file_name": "p0.png", "width": 40, "height": 20}]
    box = {"id": 0, "image_id": 0, "category_id": 0, "bbox": [1, 1, 5, 5]}
    many = [{"id": index, "name": f"class {index}"} for index in range(100_000)]
    for index, document in enumerate(
        (
            {"images": images, "annotations": [box], "categories": many},
            {
                "images": images,
                "annotations": [box],
                "categories": [{"id": 0, "name": "x" * 10**6}],
            },
            {"images": images, "annotations": [{**box, "id": 10**400}], "categories": many[:1]},
            {
                "images": images,
                "annotations": [{**box, "bbox": [10**400] * 4}],
                "categories": many[:1],
            },
            {
                "images": images,
                "annotations": [{**box, "segmentation": [[1e308, -1e308] * 9]}],
                "categories": many[:1],
            },
            {
                "images": images,
                "annotations": [
                    {**box, "segmentation": {"size": [10**6, 10**6], "counts": "x" * 9999}}
                ],
                "categories": many[:1],
            },
            {
                "images": [{**images[0], "width": 10**12, "height": 10**12}],
                "annotations": [box],
                "categories": many[:1],
            },
        )
    ):
        check(fuzzer, coco(tmp_path / str(index), document), "data.masks=true")
        check(fuzzer, tmp_path / str(index))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes in folders are a thing of POSIX")
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (layouts.fiftyone_coco, "data/p0.png"),
        (layouts.fiftyone_coco, "labels.json"),
        (layouts.labelimg_voc, "p0.xml"),
        (layouts.fiftyone_yolo, "labels/train/p0.txt"),
        (layouts.fiftyone_yolo, "dataset.yaml"),
        (layouts.fiftyone_yolo, "images/train/p0.png"),
        (layouts.roboflow_csv, "train/_annotations.csv"),
        (layouts.cvat_yolo, "train.txt"),
        (layouts.cvat_yolo, "obj.names"),
    ],
)
def test_a_pipe_a_device_or_a_folder_in_the_place_of_a_file(fuzzer, tmp_path, make, name):
    for kind in ("pipe", "device", "folder", "loop"):
        root = tmp_path / kind
        make(root)
        path = root / name
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(path.name)
        check(fuzzer, root)


@pytest.mark.parametrize(
    "name", ["a\nb.png", "a\x1b[31m.png", "a\udcff.png", "%s{0}$x.png", " .png"]
)
def test_names_that_no_terminal_shows(fuzzer, tmp_path, name):
    layouts.fiftyone_yolo(tmp_path / "data")
    picture = tmp_path / "data" / "images" / "train" / name
    Image.new("RGB", (40, 20)).save(picture.with_name("new.png"))
    picture.with_name("new.png").rename(picture)
    label = (tmp_path / "data" / "labels" / "train" / name).with_suffix(".txt")
    label.write_text("0 nan 1 2 3\n")
    text = check(fuzzer, tmp_path / "data")
    assert "\x1b" not in text
    assert all(": " in line for line in text.splitlines()[:-1])
    model = str(fuzzer.support / "model.safetensors")
    out = str(tmp_path / "out")
    command = ["detect", model, str(picture.parent), "--out", out, "--min-score", "0"]
    assert run_command(command, fuzzer.folder) == ""
