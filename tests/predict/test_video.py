"""Detections in the frames of videos, whole and damaged."""

from __future__ import annotations

import builtins
import gc
import io
import itertools
import os
import re
import sys
import threading
import weakref
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rcnn_ext.config import Recipe, with_data_overrides
from rcnn_ext.errors import UserError
from rcnn_ext.predict import video_frames
from rcnn_ext.predict.predictor import Predictor
from rcnn_ext.predict.video_frames import VideoFrame
from rcnn_ext.predict.video_sources import VideoSource, is_video, split_sources
from tests.helpers.corner_model import CLASSES, Corner

pytest.importorskip("av", reason="av comes with the extra video")

import av

from tests.helpers.videos import frame_pixels, make_sound, make_video, set_display_matrix


def predict(path, model=None, **options):
    """Return the results for a video, with the error that ends it."""
    model = Predictor(model or Corner(), CLASSES)
    return list(model.predict_video(path, on_error="return", **options))


def damage_packet(path, index):
    """Break the packet of a frame in an MP4 file: none of its parts has such a length."""
    with av.open(str(path)) as container:
        packet = next(itertools.islice(container.demux(video=0), index, None))
        content = bytearray(path.read_bytes())
        content[packet.pos : packet.pos + 8] = b"\xff" * 8
    path.write_bytes(content)


def cut(path, fraction):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path


def test_each_frame_has_its_number_its_time_and_its_detections(tmp_path):
    path = make_video(tmp_path / "street.mp4", 10)
    model = Corner()
    found = predict(path, model, batch_size=4)
    assert model.batches == [4, 4, 2]
    assert [one.frame for one in found] == list(range(10))
    assert [one.time for one in found] == pytest.approx([n / 25 for n in range(10)])
    assert all(one.boxes.tolist() == [[32, 24, 64, 48], [0, 0, 16, 12]] for one in found)
    assert found[3].image_size == (48, 64)
    assert found[3].name == Path("street.mp4/000003")
    drawn = np.asarray(found[3].picture).astype(int)
    assert np.abs(drawn - frame_pixels(3)).mean() < 4
    assert found[3].filter(min_score=0.5).frame == 3
    # The model saw the frames in order, each lighter than the one before.
    means = [mean[0] for mean in model.means]
    assert means == sorted(means)


def test_every_nth_frame_and_parts(tmp_path):
    path = make_video(tmp_path / "a.mkv", 50)
    assert [one.frame for one in predict(path, every=20)] == [0, 20, 40]
    part = predict(path, start=0.4, end=0.8, every=3)
    assert [one.frame for one in part] == [10, 13, 16, 19]
    assert part[1].time == pytest.approx(0.52)
    (nothing,) = predict(path, start=9)
    assert "has no frame in the chosen time" in str(nothing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be a whole number from 1 on, not 0"),
        ({"every": 1.5}, "every must be a whole number"),
        ({"start": -1}, "start must be a time in seconds from 0 on, not -1"),
        ({"end": float("nan")}, "end must be a time in seconds"),
        ({"start": 5, "end": 5}, r"end \(5 s\) must be after start \(5 s\)"),
        ({"end": 0}, r"end \(0 s\) must be after start \(0 s\)"),
        ({"min_score": 2}, "min_score must be"),
        ({"tile": 2}, "tile must be"),
        ({"on_error": "skip"}, "on_error must be"),
    ],
)
def test_options_out_of_range_are_told_before_the_first_frame(tmp_path, options, message):
    path = make_video(tmp_path / "a.mp4", 2)
    with pytest.raises(UserError, match=message):
        Predictor(Corner(), CLASSES).predict_video(path, **options)


def test_a_model_in_training_mode_is_told_before_the_first_frame(tmp_path):
    path = make_video(tmp_path / "a.mp4", 2)
    with pytest.raises(UserError, match="training mode"):
        Predictor(Corner().train(), CLASSES).predict_video(path)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda pixels: np.rot90(pixels, -1)),
        ((-1, 0, 0, -1), lambda pixels: np.rot90(pixels, 2)),
        ((0, -1, 1, 0), lambda pixels: np.rot90(pixels, 1)),
        ((-1, 0, 0, 1), lambda pixels: pixels[:, ::-1]),
        ((1, 0, 0, -1), lambda pixels: pixels[::-1]),
        ((0, 1, 1, 0), lambda pixels: pixels.transpose(1, 0, 2)),
    ],
    ids=["90", "180", "270", "mirrored", "flipped", "transposed"],
)
def test_turned_videos_are_brought_upright(tmp_path, matrix, turn):
    path = make_video(tmp_path / "phone.mp4", 2)
    set_display_matrix(path, *matrix)
    (found, _) = predict(path)
    expected = turn(frame_pixels(0))
    assert found.image_size == expected.shape[:2]
    assert np.abs(np.asarray(found.picture).astype(int) - expected).mean() < 4


def test_variable_frame_rates_keep_their_times(tmp_path):
    times = [Fraction(n, 1000) for n in (0, 40, 50, 400, 1000)]
    found = predict(make_video(tmp_path / "a.mp4", 5, times=times))
    assert [one.time for one in found] == pytest.approx([float(time) for time in times])


@pytest.mark.parametrize("suffix", [".ts", ".mpg", ".flv", ".wmv", ".avi", ".webm", ".mov"])
def test_usual_formats_are_whole(tmp_path, suffix):
    codecs = {".mpg": "mpeg1video", ".wmv": "wmv2", ".avi": "mpeg4", ".webm": "libvpx"}
    path = make_video(tmp_path / f"a{suffix}", 12, codec=codecs.get(suffix, "libx264"))
    found = predict(path)
    assert [one.frame for one in found] == list(range(12))
    # Times count from the beginning, whatever the first time stamp is.
    assert found[0].time < 0.1
    assert found[11].time - found[0].time == pytest.approx(11 / 25, abs=0.01)


def test_frames_are_tiled(tmp_path):
    path = make_video(tmp_path / "a.mp4", 3, size=(128, 64))
    model = Corner()
    found = predict(path, model, tile=64, overlap=0, whole_picture=False, batch_size=2)
    assert model.batches == [2, 2, 2]
    dogs = found[0].filter(classes="dog").boxes.tolist()
    assert sorted(dogs) == [[32, 32, 64, 64], [96, 32, 128, 64]]


def test_gray_models_take_frames_and_others_are_told(tmp_path):
    path = make_video(tmp_path / "a.mp4", 2)
    model = Corner()
    model.transform = SimpleNamespace(image_mean=[0.5])
    assert len(predict(path, model)) == 2
    assert len(model.means[0]) == 1
    model.transform.image_mean = [0.5] * 5
    (error,) = predict(path, model)
    assert "5 channels" in str(error)


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".mp4", "libx264", {"movflags": "faststart"}),
        (".mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        (".mkv", "libx264", {}),
        (".webm", "libvpx", {}),
        (".avi", "mpeg4", {}),
        (".flv", "libx264", {}),
        (".wmv", "wmv2", {}),
        (".ts", "libx264", {}),
    ],
)
def test_a_cut_video_gives_its_frames_and_says_where_it_ends(tmp_path, suffix, codec, options):
    path = cut(make_video(tmp_path / f"a{suffix}", 100, codec=codec, **options), 0.703)
    *found, error = predict(path)
    assert 20 < len(found) < 95
    assert [one.frame for one in found] == list(range(len(found)))
    assert f"{path} " in str(error)
    assert re.search(rf"(after|;) {len(found)} frames \(", str(error))
    seconds = float(re.search(r"frames \(([0-9.]+) s\)", str(error))[1])
    assert seconds == pytest.approx(found[-1].time + 1 / 25, abs=0.01)


def test_a_damaged_video_gives_the_frames_around_and_says_where(tmp_path):
    path = make_video(tmp_path / "a.mp4", 60)
    damage_packet(path, 30)
    *found, error = predict(path)
    assert 50 < len(found) < 60
    assert found[-1].time == pytest.approx(59 / 25)
    first = re.search(r"a.mp4 is damaged from frame (\d+) \(([0-9.]+) s\) on; ", str(error))
    assert 10 <= int(first[1]) <= 33
    assert float(first[2]) == pytest.approx(int(first[1]) / 25)
    assert str(error).endswith(f"; {len(found)} frames (2.40 s) could be read")
    frames = Predictor(Corner(), CLASSES).predict_video(path)
    assert len(list(itertools.islice(frames, len(found)))) == len(found)
    with pytest.raises(UserError, match="is damaged from frame"):
        next(frames)


def test_what_is_no_video_is_told_in_one_line(tmp_path):
    whole = make_video(tmp_path / "whole.mp4", 30)
    cases = {
        "text.mp4": (b"no video", "is no video that FFmpeg can read, or its beginning is damaged"),
        "empty.mp4": (b"", "is empty; expected a video"),
        "cut.mp4": (
            whole.read_bytes()[: whole.stat().st_size // 2],
            "is cut off before its index: no frame can be read",
        ),
        "codec.mp4": (
            whole.read_bytes().replace(b"avc1", b"zzzz"),
            "has a video codec that this FFmpeg cannot decode",
        ),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} {message}"):
            Predictor(Corner(), CLASSES).predict_video(tmp_path / name)
    with pytest.raises(UserError, match="gone.mp4 does not exist: name a video"):
        Predictor(Corner(), CLASSES).predict_video(tmp_path / "gone.mp4")
    with pytest.raises(UserError, match="is a folder: name a video"):
        Predictor(Corner(), CLASSES).predict_video(tmp_path)


@pytest.mark.parametrize("cover", [False, True])
def test_sound_without_video_is_told(tmp_path, cover):
    path = make_sound(tmp_path / "song.m4a", cover=cover)
    with pytest.raises(UserError, match=r"song.m4a has no video stream \(audio only\)"):
        predict(path)
    # It is named as a source, or passed over in a folder.
    assert split_sources([path]) == ([], [VideoSource(path, Path("song.m4a"))])
    assert split_sources([tmp_path]) == ([tmp_path], [])


def test_a_video_without_frames_is_told(tmp_path):
    path = make_video(tmp_path / "a.avi", 0, codec="mpeg4")
    with pytest.raises(UserError, match=r"a\.avi .*no"):
        list(Predictor(Corner(), CLASSES).predict_video(path))


def test_frames_beyond_the_limit_of_pixels_are_named(tmp_path):
    path = make_video(tmp_path / "a.mp4", 2)
    model = Predictor(Corner(), CLASSES)
    model.recipe = with_data_overrides(Recipe(), ["data.max_pixels=3071"])
    with pytest.raises(UserError, match=r"the frames of .*a.mp4 are 64x48 pixels; more than 3,071"):
        model.predict_video(path)


def test_without_pyav_one_line_says_what_to_install(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", 2)
    imported = builtins.__import__

    def refuse(name, *arguments):
        if name == "av":
            raise ModuleNotFoundError("No module named 'av'", name="av")
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"pip install 'rcnn-ext\[video\]'"):
        predict(path)


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", 200)
    model = Predictor(Corner(), CLASSES)
    alive = weakref.WeakSet()

    class Counted(VideoFrame):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            alive.add(self)

    monkeypatch.setattr(video_frames, "VideoFrame", Counted)
    assert max(len(alive) for _ in model.predict_video(path, batch_size=2, threads=1)) in range(
        1, 9
    )
    kept = list(model.predict_video(path, keep_frames=False))
    gc.collect()
    assert len(kept) == 200
    assert len(alive) == 0
    with pytest.raises(UserError, match="have no picture to draw on"):
        kept[0].draw()
    assert len(list(model.predict_video(path))) == len(kept)


def test_a_pipe_is_read_as_it_comes(tmp_path, monkeypatch):
    content = make_video(tmp_path / "a.mkv", 12).read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), isatty=bool))
    assert len(predict("-")) == 12
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"text"), isatty=bool))
    with pytest.raises(UserError, match="standard input is no video that can be read from a pipe"):
        predict("-")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(UserError, match="a terminal"):
        predict("-")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_a_video(tmp_path):
    content = make_video(tmp_path / "a.mkv", 6).read_bytes()
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    try:
        assert split_sources([tmp_path / "pipe"])[1][0].name == Path("pipe")
        assert len(predict(tmp_path / "pipe")) == 6
    finally:
        writer.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_urls_are_read_and_named_when_they_fail(tmp_path):
    make_video(tmp_path / "a.mkv", 6)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_port}"
    try:
        assert len(predict(f"http://{host}/a.mkv")) == 6
        with pytest.raises(UserError, match=rf"cannot open http://\*\*\*@{host}/gone.mp4: .*404"):
            predict(f"http://me:secret@{host}/gone.mp4")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(UserError, match=f"cannot open rtsp://{host}/live: Connection refused"):
        predict(f"rtsp://{host}/live")


def test_videos_are_told_from_pictures(tmp_path):
    for name in ("b10.mp4", "b9.MOV", "sub/c.mkv"):
        make_video(tmp_path / "mixed" / name, 1)
    (tmp_path / "mixed" / "without_suffix").write_bytes(
        make_video(tmp_path / "x.mp4", 1).read_bytes()
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "mixed" / "a.png")
    (tmp_path / "mixed" / "code.ts").write_text("export const video = 1;\n" * 20)
    (tmp_path / "mixed" / "song.mp3").write_bytes(b"ID3")
    (tmp_path / "mixed" / "._b9.mov").write_bytes(b"")
    old = make_video(tmp_path / "mixed" / "found" / "videos" / "old.mp4", 1)
    old.with_suffix(".jsonl").write_text('{"frame": 0, "time": 0.0, "detections": []}\n')
    pictures, videos = split_sources([tmp_path / "mixed"])
    assert pictures == [tmp_path / "mixed"]
    names = ["b9.MOV", "b10.mp4", "sub/c.mkv", "without_suffix"]
    assert [one.name.as_posix() for one in videos] == names
    pictures, videos = split_sources([str(tmp_path / "mixed/*.mp4"), tmp_path / "x.mp4"])
    assert pictures == []
    assert [one.name.name for one in videos] == ["b10.mp4", "x.mp4"]
    assert split_sources([tmp_path / "x.mp4", f"file://{tmp_path}/x.mp4"])[1] == [
        VideoSource(tmp_path / "x.mp4", Path("x.mp4"))
    ]
    # What is neither is left to those who read pictures, who say what is wrong.
    gone = [str(tmp_path / "gone.mp4"), str(tmp_path / "no*.png")]
    assert split_sources(gone) == (gone, [])
    assert [one.target for one in split_sources(["rtsp://host/live", "-"])[1]] == [
        "rtsp://host/live",
        "-",
    ]
    with pytest.raises(UserError, match=r"http://host/a.jpg is a picture on another machine"):
        split_sources(["http://host/a.jpg"])
    assert not is_video(tmp_path / "mixed" / "a.png")


def test_a_detector_that_fails_ends_the_video(tmp_path):
    class Broken(nn.Module):
        def forward(self, images):
            raise torch.OutOfMemoryError("no memory")

    path = make_video(tmp_path / "a.mp4", 30)
    (error,) = predict(path, Broken().eval())
    assert re.search("a.mp4/000000: .* has not enough memory for", str(error))
