"""What the command writes for videos: JSON lines, and annotated copies."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av", reason="av comes with the extra video")

import av

from rcnn_ext.cli import main
from rcnn_ext.cli.arguments import seconds
from rcnn_ext.errors import UserError
from rcnn_ext.predict import detect_run, detect_video, video_writer
from rcnn_ext.predict.predictor import Predictor
from rcnn_ext.predict.video_frames import FrameRange
from rcnn_ext.predict.video_sources import VideoSource, split_sources
from rcnn_ext.shards import Shard
from tests.helpers.corner_model import CLASSES, Corner
from tests.helpers.videos import frame_pixels, make_video, read_frames, set_display_matrix


@pytest.fixture
def model(monkeypatch):
    loaded = Predictor(Corner(), CLASSES)
    monkeypatch.setattr(detect_run, "load", lambda checkpoint, **options: loaded)
    return loaded


def run(path, out, **options):
    """Detect in a video, and return its lines, and the annotated copy if there is one."""
    detect_video.detect_in_videos("run", [VideoSource.of(path)], out, **options)
    return lines_of(out, path.stem), out / "videos" / f"{path.stem}.mp4"


def lines_of(out, stem):
    return [json.loads(line) for line in (out / "videos" / f"{stem}.jsonl").open()]


def test_a_line_per_frame(model, tmp_path):
    lines, _ = run(make_video(tmp_path / "a.mp4", 6), tmp_path / "out", min_score=0.5)
    assert [line["frame"] for line in lines] == list(range(6))
    assert [line["time"] for line in lines] == [0.0, 0.04, 0.08, 0.12, 0.16, 0.2]
    dog = {"category_id": 18, "category_name": "dog", "bbox": [32.0, 24.0, 32.0, 24.0]}
    assert lines[2]["detections"] == [{**dog, "score": 0.9}]
    assert (lines[2]["width"], lines[2]["height"]) == (64, 48)


@pytest.mark.parametrize("rate", [25, Fraction(30000, 1001)])
@pytest.mark.parametrize("size", [(640, 480), (65, 49)])
def test_the_annotated_copy_has_the_frames_the_rate_and_the_size(model, tmp_path, rate, size):
    path = make_video(tmp_path / "a.mkv", 12, size=size, rate=rate)
    _, annotated = run(path, tmp_path / "out")
    with av.open(str(annotated)) as container:
        (stream,) = container.streams
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == pytest.approx(rate, rel=1e-3)
        assert (stream.codec_context.width, stream.codec_context.height) == size
        assert stream.frames == 12
    frames = read_frames(annotated)
    assert [time for time, _ in frames] == pytest.approx([n / rate for n in range(12)], abs=1e-3)
    pixels = frames[5][1].astype(int)
    # The upper left has no box with a score of 0.5; the dog's box is drawn.
    corner = np.s_[: size[1] // 4, : size[0] // 4]
    assert np.abs(pixels[corner] - frame_pixels(5, size)[corner]).mean() < 6
    box = pixels[size[1] // 2 + 1, -size[0] // 4 :]
    assert np.abs(box - frame_pixels(5, size)[-1, -1]).mean() > 30


def test_colors_are_kept(model, tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        picture = np.full((48, 64, 3), (220, 60, 20), np.uint8)
        for _ in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    _, annotated = run(path, tmp_path / "out", draw_score=1.0)
    before, after = read_frames(path)[1][1], read_frames(annotated)[1][1]
    assert np.abs(before.astype(int) - after).max() < 8


def test_times_of_variable_rates_and_of_parts_are_kept(model, tmp_path):
    times = [Fraction(n, 1000) for n in (0, 40, 50, 400, 1000)]
    path = make_video(tmp_path / "a.mp4", 5, times=times)
    _, annotated = run(path, tmp_path / "out")
    assert [time for time, _ in read_frames(annotated)] == pytest.approx(list(map(float, times)))
    lines, annotated = run(path, tmp_path / "part", frames=FrameRange(2, 0.045, 2.0))
    assert [line["time"] for line in lines] == [0.05, 1.0]
    shown = [time for time, _ in read_frames(annotated)]
    assert shown == pytest.approx([0.005, 0.955], abs=0.001)


def test_without_an_encoder_for_h264_there_is_another(model, tmp_path, monkeypatch):
    monkeypatch.setattr(video_writer, "_ENCODERS", ("no_such_encoder", "mpeg4"))
    times = [Fraction(n, 1000) for n in (0, 40, 50, 400, 1000)]
    path = make_video(tmp_path / "a.mp4", 5, times=times, size=(65, 49))
    _, annotated = run(path, tmp_path / "out")
    frames = read_frames(annotated)
    assert [time for time, _ in frames] == pytest.approx(list(map(float, times)), abs=0.001)
    assert frames[0][1].shape == (49, 65, 3)
    monkeypatch.setattr(video_writer, "_ENCODERS", ("no_such_encoder",))
    with pytest.raises(UserError, match="this FFmpeg has no encoder for video"):
        run(path, tmp_path / "none")
    assert len(lines_of(tmp_path / "none", "a")) == 5
    assert os.listdir(tmp_path / "none" / "videos") == ["a.jsonl"]


def test_turned_videos_are_upright_in_their_copies(model, tmp_path):
    path = make_video(tmp_path / "a.mp4", 2)
    set_display_matrix(path, 0, 1, -1, 0)
    lines, annotated = run(path, tmp_path / "out")
    assert (lines[0]["width"], lines[0]["height"]) == (48, 64)
    (_, pixels), _ = read_frames(annotated)
    assert pixels.shape == (64, 48, 3)
    assert pixels[:8, -8:].min() > 200


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "aac"), (".ts", "aac"), (".mkv", "mp2")])
def test_sound_is_copied_or_told(model, tmp_path, capsys, suffix, codec):
    path = make_video(tmp_path / f"a{suffix}", 50, audio=codec)
    _, annotated = run(path, tmp_path / "out")
    with av.open(str(annotated)) as container:
        found = [stream.codec_context.name for stream in container.streams.audio]
        assert len(list(container.decode(video=0))) == 50
    if codec == "mp2":
        assert found == []
        assert "sound (mp2) is not copied" in capsys.readouterr().out
        return
    assert found == [codec]
    with av.open(str(annotated)) as container:
        sound = list(container.decode(audio=0))
    assert sum(frame.samples for frame in sound) == pytest.approx(96_000, abs=3000)
    _, part = run(path, tmp_path / "part", frames=FrameRange(start=1.0, end=1.5))
    with av.open(str(part)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == pytest.approx(
            24_000, abs=4000
        )


def test_frames_that_change_their_size_are_resized_in_the_copy(model, tmp_path, capsys):
    # Streams of programs are joined like this.
    first = make_video(tmp_path / "first.mpg", 5, codec="mpeg2video").read_bytes()
    second = make_video(tmp_path / "second.mpg", 5, codec="mpeg2video", size=(96, 64)).read_bytes()
    (tmp_path / "a.mpg").write_bytes(first + second)
    lines, annotated = run(tmp_path / "a.mpg", tmp_path / "out")
    assert {(line["width"], line["height"]) for line in lines} == {(64, 48), (96, 64)}
    assert "frames of other sizes are resized to that of the first" in capsys.readouterr().out
    times = [time for time, _ in read_frames(annotated)]
    assert len(times) == len(lines)
    assert times == sorted(set(times))


def test_the_keyboard_keeps_what_is_done(model, tmp_path, monkeypatch):
    calls = []

    def stop(self, images):
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return Corner.forward(self, images)

    monkeypatch.setattr(model, "detector", type("Stopped", (Corner,), {"forward": stop})())
    with pytest.raises(KeyboardInterrupt):
        run(make_video(tmp_path / "a.mp4", 40), tmp_path / "out", batch_size=4)
    assert [line["frame"] for line in lines_of(tmp_path / "out", "a")] == list(range(12))
    assert len(read_frames(tmp_path / "out" / "videos" / "a.mp4")) == 12


def test_a_copy_never_replaces_a_video_and_is_not_searched_again(model, tmp_path):
    path = make_video(tmp_path / "videos" / "a.mp4", 2)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"a\.mp4 is where results would be written"):
        run(path, tmp_path)
    assert path.read_bytes() == before
    run(path, tmp_path / "videos" / "found")
    _, again = split_sources([tmp_path])
    assert [one.target for one in again] == [path]


def test_shards_take_whole_videos(model, tmp_path):
    for name in ("a", "b", "c"):
        make_video(tmp_path / f"{name}.mp4", 2)
    _, videos = split_sources([tmp_path])
    for index, expected in enumerate((["a.jsonl", "c.jsonl"], ["a.jsonl", "b.jsonl", "c.jsonl"])):
        detect_video.detect_in_videos(
            "run", videos, tmp_path / "out", draw_score=None, shard=Shard(index, 2)
        )
        assert sorted(os.listdir(tmp_path / "out" / "videos")) == expected
    none = Shard(3, 4)
    assert detect_video.detect_in_videos("r", videos, tmp_path, draw_score=None, shard=none) == 0


def test_a_file_that_cannot_be_written_costs_that_file_only(model, tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", 6)
    (tmp_path / "out" / "videos" / "a.mp4").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*a\.mp4: Is a directory"):
        run(path, tmp_path / "out")
    assert len(lines_of(tmp_path / "out", "a")) == 6
    (tmp_path / "other" / "videos" / "a.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*a.jsonl: Is a directory"):
        run(path, tmp_path / "other")
    assert len(read_frames(tmp_path / "other" / "videos" / "a.mp4")) == 6


def test_the_command_does_pictures_and_videos_and_names_the_damaged(tiny_run, tmp_path, capsys):
    folder = tmp_path / "in"
    for name in ("a/clip.mp4", "b/clip.mov"):
        make_video(folder / name, 6)
    cut = make_video(folder / "cut.mkv", 100)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (folder / "none.mp4").write_bytes(b"nothing")
    Image.open(tiny_run.data / "val" / "000002.png").save(folder / "photo.png")
    out = tmp_path / "out"
    command = ["detect", str(tiny_run.out), str(folder), "--out", str(out), "--device", "cpu"]
    assert main([*command, "--min-score", "0", "--every", "3"]) == 2
    said = capsys.readouterr()
    assert "cut.mkv is cut off: it ends after" in said.err
    assert "none.mp4 is no video that FFmpeg can read" in said.err
    assert "the others are done" in said.err
    assert "Traceback" not in said.err
    assert (out / "detections.json").is_file()
    assert os.listdir(out / "pictures") == ["photo.jpg"]
    videos = out / "videos"
    found = sorted(path.relative_to(videos).as_posix() for path in videos.rglob("*.*"))
    expected = ["a/clip.jsonl", "a/clip.mp4", "b/clip.jsonl", "b/clip.mp4"]
    assert found == [*expected, "cut.jsonl", "cut.mp4"]
    lines = [json.loads(line) for line in (videos / "a" / "clip.jsonl").open()]
    assert [line["frame"] for line in lines] == [0, 3]
    assert lines[0]["detections"]

    alone = [*command[:2], str(folder / "a" / "clip.mp4"), str(folder / "b" / "clip.mov")]
    more = ["--out", str(tmp_path / "two"), "--no-pictures", "--start", "0:00.1", "--tile", "32"]
    assert main([*alone, *more]) == 0
    assert sorted(os.listdir(tmp_path / "two")) == ["detect-shards", "videos"]
    assert sorted(os.listdir(tmp_path / "two" / "videos")) == ["clip-2.jsonl", "clip.jsonl"]
    lines = lines_of(tmp_path / "two", "clip-2")
    assert [line["frame"] for line in lines] == [3, 4, 5]
    assert main([*alone, "--out", str(tmp_path / "two"), "--start", "5", "--end", "4"]) == 2
    assert "end (4 s) must be after start (5 s)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"), [("90", 90), ("1:30", 90), ("1:00:00.5", 3600.5), ("0", 0)]
)
def test_times_on_the_command_line(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "1:2:3:4", "one", "nan", "inf", "1:-5"])
def test_times_that_are_none(text):
    with pytest.raises(Exception, match="expected a time like 90, 1:30 or 0:01:30"):
        seconds(text)


def test_names_of_results_stay_in_the_folder(tmp_path):
    assert VideoSource.of("http://host/../../x y.mp4").name == Path("x_y.mp4")
    assert VideoSource.of("rtsp://me:secret@host:8554/").name == Path("host")
    assert VideoSource.of("rtsp://me:secret@host/live").shown == "rtsp://***@host/live"
