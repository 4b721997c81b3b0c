"""``detect`` in several processes, and started again: nothing is lost, nothing is done twice."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
from PIL import Image

from rcnn_ext.errors import UserError
from rcnn_ext.predict import detect_record, detect_run
from rcnn_ext.predict.detect import detect_to_folder
from rcnn_ext.predict.detections import Detections
from rcnn_ext.predict.predictor import Predictor
from rcnn_ext.shards import Shard
from tests.helpers.corner_model import CLASSES, Corner

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(monkeypatch):
    """What ``detect`` loads."""
    corner = Corner()
    monkeypatch.setattr(detect_run, "load", lambda *_, **__: Predictor(corner, CLASSES))
    return corner


@pytest.fixture
def folder(tmp_path):
    """Seven pictures, of different sizes."""
    path = tmp_path / "in"
    path.mkdir()
    for index in range(7):
        Image.new("RGB", (40 + index, 30), (index, 0, 0)).save(path / f"p{index}.png")
    return path


def run(folder, out, **options):
    options = {"batch_size": 2, "min_score": 0.3, "draw_score": None, **options}
    return detect_to_folder("model", [folder], out, **options)


def results(out):
    return json.loads((out / "detections.json").read_text())


def files(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


def test_shards_in_any_order_give_what_one_process_gives(model, folder, tmp_path, capsys):
    assert run(folder, tmp_path / "one", draw_score=0.5) == 14
    assert model.batches == [2, 2, 2, 1]
    model.batches.clear()
    out = tmp_path / "three"
    for index in (2, 0):
        assert run(folder, out, draw_score=0.5, shard=Shard(index, 3, "--shard")) is None
        assert not (out / "detections.json").exists()
    said = capsys.readouterr().out
    assert "shard 3 of 3 (by --shard): 2 of 7 pictures" in said
    assert "shard 2 of 3 has not begun" in said
    assert run(folder, out, draw_score=0.5, shard=Shard(1, 3, "--shard")) == 14
    # The same batches, so the same bits.
    assert sorted(model.batches) == [1, 2, 2, 2]
    for name in ("detections.json", "overview.jpg", "pictures/p3.jpg"):
        assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    entries = results(out)
    assert [entry["image_id"] for entry in entries] == [n for n in range(1, 8) for _ in range(2)]
    assert entries[0] == {
        "image_id": 1,
        "file_name": "p0.png",
        "category_id": 18,
        "category_name": "dog",
        "bbox": [20.0, 15.0, 20.0, 15.0],
        "score": 0.9,
    }


def test_what_is_done_is_left_out_after_a_kill(model, folder, tmp_path, capsys):
    out = tmp_path / "out"
    run(folder, tmp_path / "whole")
    run(folder, out)
    lines = out / "detect-shards" / "00001-of-00001.jsonl"
    whole = lines.read_bytes().splitlines(keepends=True)
    # As if killed in the middle of the line of the fourth picture.
    lines.write_bytes(b"".join(whole[:4]) + whole[4][:30])
    model.batches.clear()
    capsys.readouterr()
    assert run(folder, out) == 14
    assert "2 of 7 pictures are done already" in capsys.readouterr().out
    assert model.batches == [2, 2, 1]
    assert (out / "detections.json").read_bytes() == (
        tmp_path / "whole" / "detections.json"
    ).read_bytes()
    # Another number of processes goes on with the same results.
    model.batches.clear()
    for index in range(3):
        run(folder, out, shard=Shard(index, 3, "--shard"))
    assert model.batches == []
    assert len(results(out)) == 14


def test_a_changed_picture_and_a_new_one_are_done(model, folder, tmp_path):
    out = tmp_path / "out"
    run(folder, out)
    Image.new("RGB", (80, 30)).save(folder / "p4.png")
    Image.new("RGB", (90, 30)).save(folder / "p9.png")
    model.batches.clear()
    assert run(folder, out) == 16
    assert model.batches == [2, 2]
    widths = [entry["bbox"][2] for entry in results(out) if entry["category_name"] == "dog"]
    assert widths == [20, 20.5, 21, 21.5, 40, 22.5, 23, 45]


def test_other_settings_are_named_and_overwritten_on_request(model, folder, tmp_path):
    out = tmp_path / "out"
    run(folder, out)
    with pytest.raises(UserError, match=r"min_score: 0.3 before, 0.8 now.*--overwrite"):
        run(folder, out, min_score=0.8)
    assert len(results(out)) == 14
    assert run(folder, out, min_score=0.8, overwrite=True) == 7
    assert len(results(out)) == 7
    # With several processes too: each does all of its part again.
    model.batches.clear()
    for index in range(2):
        count = run(folder, out, min_score=0.8, overwrite=True, shard=Shard(index, 2, "--shard"))
    assert count == 7
    assert sum(model.batches) == 7
    assert sorted(os.listdir(out / "detect-shards")) == [
        "00001-of-00002.jsonl",
        "00002-of-00002.jsonl",
        "lock",
        "manifest.json",
    ]


def test_results_of_an_earlier_run_are_not_mixed_in(model, folder, tmp_path):
    out = tmp_path / "out"
    run(folder, out, draw_score=0.5)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "p1.png", other / "p1.png")
    shutil.copy(folder / "p2.png", other / "new.png")
    (out / "pictures" / "own.jpg").write_text("mine")
    assert run(other, out, draw_score=0.5) == 4
    assert sorted(os.listdir(out / "pictures")) == ["new.jpg", "own.jpg", "p1.jpg"]
    assert {entry["file_name"] for entry in results(out)} == {"p1.png", "new.png"}
    manifest = json.loads((out / "detect-shards" / "manifest.json").read_text())
    assert manifest["pictures"]["count"] == 2
    assert manifest["settings"]["min_score"] == 0.3


def test_old_results_do_not_stay_when_a_run_stops(model, folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(folder, out, draw_score=0.5)
    Image.new("RGB", (90, 30)).save(folder / "p9.png")

    def stop(self, images):
        raise KeyboardInterrupt

    monkeypatch.setattr(Corner, "forward", stop)
    with pytest.raises(KeyboardInterrupt):
        run(folder, out, draw_score=0.5)
    assert not {"detections.json", "overview.jpg"} & set(os.listdir(out))


def test_own_results_are_not_searched(model, folder, tmp_path):
    assert run(folder, folder, draw_score=0.5) == 14
    assert run(folder, folder, draw_score=0.5) == 14
    # Nor those of another run below the folder.
    run(folder, folder / "again", draw_score=0.5)
    assert run(folder, tmp_path / "out", draw_score=0.5) == 14
    assert "pictures/p0.jpg" in files(folder)
    assert "pictures/p0.jpg" in files(folder / "again")


def test_pictures_are_never_drawn_over_those_that_are_searched(model, folder):
    (folder / "pictures").mkdir()
    shutil.move(folder / "p1.png", folder / "pictures" / "p1.jpg")
    before = (folder / "pictures" / "p1.jpg").read_bytes()
    with pytest.raises(UserError, match="p1.jpg is where results would be drawn"):
        run(folder, folder, draw_score=0.5)
    assert (folder / "pictures" / "p1.jpg").read_bytes() == before


def test_one_picture_that_fails_costs_that_picture(model, folder, tmp_path, monkeypatch):
    forward = Corner.forward

    def fail_at_one(self, images):
        if any(image.shape[2] == 43 for image in images):
            raise RuntimeError("sizes should be greater than 0\nat frame 1")
        return forward(self, images)

    monkeypatch.setattr(Corner, "forward", fail_at_one)
    (folder / "p5.png").write_text("no picture")
    out = tmp_path / "out"
    with pytest.raises(UserError) as error:
        run(folder, out)
    text = str(error.value)
    assert text.startswith(f"{folder / 'p3.png'}: sizes should be greater than 0 (and 1 more)")
    assert f"the others are done; {out / 'errors.jsonl'} has all errors" in text
    assert len(results(out)) == 10
    errors = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert [error["file_name"] for error in errors] == ["p3.png", "p5.png"]
    # They are tried again.
    monkeypatch.setattr(Corner, "forward", forward)
    Image.new("RGB", (45, 30)).save(folder / "p5.png")
    assert run(folder, out) == 14
    assert not (out / "errors.jsonl").exists()


def test_a_drawing_that_cannot_be_written_costs_that_drawing(model, folder, tmp_path):
    # Of a name of 250 bytes everything can be written; "-2" is one too many.
    long = "x" * 251
    Image.new("RGB", (50, 30)).save(folder / f"{long}.png")
    shutil.copy(folder / "p0.png", folder / f"{long}.bmp")
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"cannot write .*-2\.jpg: File name too long"):
        run(folder, out, draw_score=0.5)
    assert len(results(out)) == 18
    assert len(os.listdir(out / "pictures")) == 8
    assert (out / "overview.jpg").exists()


def test_a_limit_on_file_sizes_costs_the_files_beyond_it(model, folder, tmp_path):
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1200, hard))
    try:
        with pytest.raises(UserError) as error:
            run(folder, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    text = str(error.value)
    lines = out / "detect-shards" / "00001-of-00001.jsonl"
    assert text.startswith(f"cannot write {lines}: File too large")
    assert text.endswith("run the command again to do the rest")
    assert 0 < len(lines.read_bytes().splitlines()) < 8
    assert run(folder, out) == 14


def test_numbers_that_are_not_finite_are_an_error_of_the_picture(
    model, folder, tmp_path, monkeypatch
):
    forward = Corner.forward

    def broken(self, images):
        found = forward(self, images)
        for image, one in zip(images, found, strict=True):
            if image.shape[2] == 42:
                one["boxes"][0, 0] = float("nan")
        return found

    monkeypatch.setattr(Corner, "forward", broken)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="p2.png: the model gives numbers that are not finite"):
        run(folder, out)
    assert len(results(out)) == 12


def test_memory_does_not_hold_the_results(model, folder, tmp_path, monkeypatch):
    made: weakref.WeakSet[Detections] = weakref.WeakSet()
    alive = []
    record = detect_record.picture_record

    def counting(path, key, found):
        made.add(found)
        alive.append(len(made))
        return record(path, key, found)

    monkeypatch.setattr("rcnn_ext.predict.detect_shard.picture_record", counting)
    for index in range(60):
        shutil.copy(folder / "p0.png", folder / f"q{index}.png")
    run(folder, tmp_path / "out")
    assert len(alive) == 67
    assert max(alive) <= 4


def test_torchrun_divides_the_pictures_and_names_the_bad_one(tiny_run, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(tiny_run.data / "val", folder)
    (folder / "0bad.png").write_text("no picture")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "rcnn_ext", "detect", str(tiny_run.out), str(folder)]
    command += ["--out", str(out), "--no-pictures", "--min-score", "0", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr  # torchrun's own for a process that failed
    assert f"{folder / '0bad.png'} is not an image that Pillow can read" in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert len({entry["file_name"] for entry in results(out)}) == 4
    one = tmp_path / "one"
    with pytest.raises(UserError):
        detect_to_folder(
            tiny_run.out, [folder], one, min_score=0, draw_score=None, device_name="cpu"
        )
    assert results(one) == results(out)
