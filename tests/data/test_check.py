from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.cli import main
from rcnn_ext.data import DataConfig, open_split
from rcnn_ext.data.statistics import channel_statistics
from rcnn_ext.errors import UserError
from tests.helpers.real_data import REAL, needs_real_data


@pytest.fixture
def folder(tmp_path):
    """A CSV data set of four images, each wrong in its own way but the first."""
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    for index in range(4):
        Image.fromarray(noise + np.uint8(index)).save(tmp_path / "images" / f"{index}.jpg")
    file = tmp_path / "images" / "1.jpg"
    file.write_bytes(file.read_bytes()[:-200])  # Truncated within the pixels.
    rows = ["0.jpg,1,1,9,9,a", "1.jpg,1,1,9,9,a", "2.jpg,1,1,50,9,a", "3.jpg,1,1,x,9,a"]
    (tmp_path / "train.csv").write_text("\n".join(["filename,xmin,ymin,xmax,ymax,class", *rows]))
    return tmp_path


def test_all_problems_are_in_one_report(folder, capsys):
    out = folder / "report.json"
    pictures = folder / "pictures"
    code = main(["check", str(folder), "--json", str(out), "--pictures", str(pictures)])
    printed = capsys.readouterr().out.splitlines()
    assert code == 2
    assert printed[0] == f"{folder}: format csv"
    table = folder / "train.csv"
    assert f"{table}:5: error: x2 is 'x', not a number" in printed
    (warning,) = (line for line in printed if ": warning: " in line)
    assert warning.startswith(f"{table}:4: warning: the box [1, 1, 50, 9] reaches out")
    (damaged,) = (line for line in printed if "1.jpg: error: " in line)
    assert "is damaged: " in damaged
    assert printed[-1] == "2 errors, 1 warnings"
    problems = json.loads(out.read_text())["splits"]["train"]["problems"]
    assert [problem["severity"] for problem in problems] == ["warning", "error", "error"]
    assert Image.open(pictures / "train.jpg").size[0] > 300


def test_what_training_skips_is_what_the_report_names(folder):
    with pytest.raises(UserError, match="line 5"):
        open_split(DataConfig(format="csv"), folder, "train")
    found = open_split(DataConfig(format="csv", on_error="skip"), folder, "train")
    assert [record.path.stem for record in found.images] == ["0", "1", "2"]


def test_sound_data_pass_and_warnings_fail_by_option(folder, capsys):
    table = folder / "train.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:2], lines[3]]))
    assert main(["check", str(folder)]) == 0
    assert main(["check", str(folder), "--strict"]) == 2
    assert main(["check", str(folder), "data.objects=one", "--split", "train"]) == 0
    assert main(["check", str(folder), "data.classes=[b]", "data.other_classes=error"]) == 2
    assert "unknown class 'a': 2 objects" in capsys.readouterr().out


def test_what_stops_a_reader_is_named_beside_other_errors(folder, capsys):
    """Rows that are broken must not hide that no coordinate is in pixels."""
    rows = ["0.jpg,0,0,1,1,a", "1.jpg,0,x,1,1,a"]
    header = "filename,xmin,ymin,xmax,ymax,class"
    (folder / "train.csv").write_text("\n".join([header, *rows]))
    assert main(["check", str(folder)]) == 2
    printed = capsys.readouterr().out
    assert "y1 is 'x', not a number" in printed
    assert f"{folder}: error: no coordinate in " in printed
    # A picture of the folder is in no row.
    assert printed.splitlines()[-1] == "2 errors, 1 warnings"


def test_sizes_that_differ_from_the_picture_point_to_the_annotations(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "images" / "a.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 31, "height": 20}],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "instances_train.json").write_text(json.dumps(document, indent=1))
    assert main(["check", str(tmp_path)]) == 2
    printed = capsys.readouterr().out
    # The line where the entry of the image begins.
    assert f"{tmp_path / 'instances_train.json'}:3: error: " in printed
    assert "is 30x20 pixels, but its annotations say 31x20" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "does not exist"),
        (["."], "looks like none of"),
        ([".", "--format", "csv"], "has no split in the format csv"),
        ([".", "--format", "csv", "data.val_fractoin=1"], "unknown key data.val_fractoin"),
    ],
)
def test_what_cannot_be_checked(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["check", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_statistics_are_those_of_all_pixels(folder):
    (folder / "images" / "1.jpg").write_bytes((folder / "images" / "0.jpg").read_bytes())
    Image.fromarray(np.full((5, 8, 3), 9, np.uint8)).save(folder / "images" / "3.jpg")
    table = folder / "train.csv"
    table.write_text(table.read_text().replace("x,9,a", "5,5,a"))
    found = open_split(DataConfig(format="csv"), folder, "train")
    pixels = np.concatenate(
        [np.asarray(Image.open(r.path).convert("RGB")).reshape(-1, 3) for r in found.images]
    )
    for workers in (1, 3):
        mean, std = channel_statistics(found, workers=workers)
        np.testing.assert_allclose(mean, pixels.mean(axis=0) / 255, rtol=1e-12)
        np.testing.assert_allclose(std, pixels.std(axis=0) / 255, rtol=1e-9)
    (folder / "images" / "2.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"2\.jpg"):
        channel_statistics(found)
    assert channel_statistics(found, skip_broken=True)[0] != mean


@needs_real_data
@pytest.mark.parametrize("folder", ["PennFudanPed", "VOCdevkit"])
def test_real_data_are_sound(folder, capsys):
    assert main(["check", str(REAL / folder), "--mean-std"]) == 0
    assert "0 errors" in capsys.readouterr().out
