"""Videos that are done are left out when the command is run again, and errors end with code 2."""

from __future__ import annotations

import os
import shutil

import pytest

pytest.importorskip("av", reason="av comes with the extra video")

from rcnn_ext.cli import main
from rcnn_ext.errors import UserError
from rcnn_ext.predict import detect_run, detect_video
from rcnn_ext.predict.predictor import Predictor
from rcnn_ext.predict.video_frames import FrameRange
from rcnn_ext.predict.video_sources import split_sources
from rcnn_ext.shards import Shard
from tests.helpers.corner_model import CLASSES, Corner
from tests.helpers.videos import make_video


class _Counting(Corner):
    frames = 0

    def forward(self, images):
        self.frames += len(images)
        return super().forward(images)


@pytest.fixture
def model(monkeypatch):
    detector = _Counting()
    loads = []
    monkeypatch.setattr(
        detect_run, "load", lambda *_, **__: loads.append(1) or Predictor(detector, CLASSES)
    )
    detector.loads = loads
    return detector


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c"):
        make_video(tmp_path / "in" / f"{name}.mp4", 3)
    return tmp_path / "in"


def detect(folder, out, **options):
    _, videos = split_sources([folder])
    return detect_video.detect_in_videos("run", videos, out, **options)


def test_what_is_done_is_left_out(model, folder, tmp_path, capsys):
    out = tmp_path / "out"
    count = detect(folder, out)
    assert model.frames == 9
    before = {path: path.read_bytes() for path in (out / "videos").iterdir()}
    assert len(before) == 6
    capsys.readouterr()
    assert detect(folder, out) == count
    assert model.frames == 9
    assert "3 of 3 videos are done already" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (out / "videos").iterdir()} == before
    # One that changed, one whose results are gone, and with as many processes as one likes.
    make_video(folder / "a.mp4", 5)
    (out / "videos" / "b.mp4").unlink()
    for index in range(3):
        detect(folder, out, shard=Shard(index, 3))
    assert model.frames == 9 + 5 + 3
    assert detect(folder, out) > count
    assert model.frames == 17
    detect(folder, out, overwrite=True)
    assert model.frames == 17 + 11


@pytest.mark.parametrize(
    "options", [{"min_score": 0.3}, {"draw_score": None}, {"frames": FrameRange(2)}]
)
def test_other_settings_are_refused_unless_all_is_done_again(model, folder, tmp_path, options):
    detect(folder, tmp_path / "out")
    with pytest.raises(UserError, match=r"results with other settings .*--overwrite to do all"):
        detect(folder, tmp_path / "out", **options)
    detect(folder, tmp_path / "out", overwrite=True, **options)
    frames = model.frames
    detect(folder, tmp_path / "out", **options)
    assert model.frames == frames


def test_an_interrupted_or_damaged_video_is_done_again(model, folder, tmp_path, monkeypatch):
    def stop(self, images):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Counting, "forward", stop)
        with pytest.raises(KeyboardInterrupt):
            detect(folder, tmp_path / "out")
    (folder / "b.mp4").write_bytes(b"nothing")
    for _ in range(2):
        with pytest.raises(UserError, match=r"b\.mp4 is no video .*the others are done"):
            detect(folder, tmp_path / "out")
        assert model.frames == 6
    shutil.copy(folder / "c.mp4", folder / "b.mp4")
    detect(folder, tmp_path / "out")
    assert model.frames == 9


def test_the_last_process_of_torchrun_fails_for_all(model, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    (folder / "a.mp4").write_bytes(b"nothing")
    detect(folder, tmp_path / "out", shard=Shard(0, 2))
    said = capsys.readouterr()
    assert "a.mp4 is no video that FFmpeg can read" in said.err
    assert "shard 2 of 2 has not begun" in said.out
    with pytest.raises(UserError, match=r"a\.mp4 is no video that FFmpeg can read"):
        detect(folder, tmp_path / "out", shard=Shard(1, 2))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = ["detect", "run", str(folder), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 2
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    with pytest.raises(UserError, match=r"a\.mp4"):
        detect(folder, tmp_path / "one", shard=Shard(0, 2))


def test_pictures_and_videos_share_a_model(model, folder, tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (64, 48)).save(folder / "photo.png")
    out = tmp_path / "out"
    command = ["detect", "run", str(folder), "--out", str(out), "--device", "cpu"]
    assert main(command) == 0
    assert len(model.loads) == 1
    assert model.frames == 10
    assert main(command) == 0
    assert model.frames == 10
    assert sorted(os.listdir(out / "pictures")) == ["photo.jpg"]
    assert main([*command, "--min-score", "0.4"]) == 2
    assert main([*command, "--min-score", "0.4", "--overwrite"]) == 0
    assert model.frames == 20
