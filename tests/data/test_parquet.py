"""Local folders of parquet files, as the Hugging Face Hub has them, without naming the format."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from rcnn_ext.cli import main
from rcnn_ext.data import detect_format
from tests.conftest import TINY
from tests.helpers.layouts import BOX, CLASSES

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow comes with the extra hf")
pyarrow = pytest.importorskip("pyarrow", reason="pyarrow comes with the extra hf")

pytestmark = pytest.mark.usefixtures("offline_hub")


@pytest.fixture
def folder(tmp_path):
    """Writes six images with a box each."""

    def folder(label="category", numbers=False):
        x1, y1, x2, y2 = map(float, BOX)
        rows = []
        for number in range(6):
            file = io.BytesIO()
            Image.new("RGB", (40, 20), (40 * number, 90, 120)).save(file, "PNG")
            kind = number % 2 if numbers else CLASSES[number % 2]
            objects = {"bbox": [[x1, y1, x2 - x1, y2 - y1]], label: [kind]}
            image = {"bytes": file.getvalue(), "path": f"p{number}.png"}
            rows.append({"image": image, "objects": objects})
        root = tmp_path / "animals"
        (root / "data").mkdir(parents=True)
        path = root / "data" / "train-00000-of-00001.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return root

    return folder


@pytest.mark.parametrize(
    ("label", "numbers"), [("category", False), ("categories", False), ("label", True)]
)
def test_check_recognizes_parquet_and_the_usual_names(folder, capsys, label, numbers):
    root = folder(label, numbers)
    assert detect_format(root) == "hf"
    assert main(["check", str(root), "--strict"]) == 0
    said = capsys.readouterr().out
    assert f"{root}: format hf" in said
    assert "train: 6 images, 6 objects of 2 classes" in said


def test_a_column_that_is_not_there_is_named(folder, capsys):
    assert main(["check", str(folder("kind_of_animal"))]) == 2
    said = capsys.readouterr().out
    assert "objects has no 'category' (data.hf.box, data.hf.label); it has" in said


def test_parquet_trains_without_its_format(folder, tmp_path, one_thread, capsys):
    pytest.importorskip("lightning", reason="lightning comes with the extra train")
    out = tmp_path / "out"
    arguments = ["faster_rcnn_synthetic", "--data", str(folder("categories")), "--out", str(out)]
    assert main(["train", *arguments, "--max-steps", "1", *TINY, "data.format=auto"]) == 0
    assert "format: hf" in (out / "recipe.yaml").read_text()


def test_report_of_a_stream(folder, tmp_path, capsys):
    """Its pictures are seen once, and are no files."""
    out = tmp_path / "page.html"
    assert main(["check", str(folder()), "--report", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert page.count('<img src="data:image/jpeg;base64,') == 6
    assert "train: <bdi>row 6</bdi>" in page
    said = capsys.readouterr().out
    # Epochs of a stream are not known before it is read, and no part of it can be set aside.
    assert "schedule.steps=" in said
    assert "data.val_fraction" not in said
