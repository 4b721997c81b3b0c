"""The proposals on disk: what names a file, what is read back, what a damaged file says."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.data.annotations import ImageRecord
from rcnn_ext.data.samples import raw_sample
from rcnn_ext.distributed import Processes
from rcnn_ext.errors import UserError
from rcnn_ext.selective_search import ProposalCache, ProposalFilter, SearchSettings, find_regions
from rcnn_ext.selective_search.cache import CachedRegions
from rcnn_ext.selective_search.precompute import precompute
from tests.helpers.made_images import smooth_noise

SafetensorError = pytest.importorskip("safetensors").SafetensorError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    paths = []
    for seed in range(5):
        path = folder / f"{seed}.png"
        Image.fromarray(smooth_noise(seed, 40 + seed, 50)).save(path)
        paths.append(path)
    return paths


@pytest.fixture
def cache(tmp_path: Path) -> ProposalCache:
    return ProposalCache(tmp_path / "proposals", SearchSettings(scale=100.0))


def _files(cache: ProposalCache) -> list[Path]:
    return sorted(path for path in cache.folder.rglob("*") if path.is_file())


def test_boxes_are_those_of_a_search(images: list[Path], cache: ProposalCache) -> None:
    summary = precompute(images, cache, workers=2)
    assert (summary.computed, summary.present, summary.broken) == (5, 0, [])
    for path in images:
        regions = find_regions(Image.open(path), cache.settings)
        found = cache.read(path)
        np.testing.assert_array_equal(found.regions.boxes, regions.boxes)
        np.testing.assert_array_equal(found.regions.sizes, regions.sizes)
        assert (found.height, found.width) == Image.open(path).size[::-1]
        filtered = ProposalFilter()(regions, found.height, found.width)
        boxes = cache.boxes(path)
        assert boxes.dtype == np.float32
        np.testing.assert_array_equal(boxes, filtered.enclosing_boxes())


def test_filters_act_on_reading(images: list[Path], cache: ProposalCache) -> None:
    precompute(images[:1], cache)
    few = ProposalCache(cache.folder, cache.settings, ProposalFilter(max_boxes=3))
    assert len(few.boxes(images[0])) == 3
    assert len(cache.boxes(images[0])) > 3
    none = ProposalCache(cache.folder, cache.settings, ProposalFilter(min_side=1000))
    np.testing.assert_array_equal(none.boxes(images[0]), [[0, 0, 50, 40]])


def test_an_image_may_have_no_proposals(images: list[Path], cache: ProposalCache) -> None:
    precompute(images[:1], cache)
    nothing = ProposalFilter(min_side=1000, whole_image=False)
    boxes = ProposalCache(cache.folder, cache.settings, nothing).boxes(images[0])
    assert (boxes.shape, boxes.dtype) == ((0, 4), np.float32)
    record = ImageRecord(
        image_id=1,
        path=images[0],
        width=50,
        height=40,
        boxes=np.zeros((0, 4), np.float32),
        labels=np.zeros(0, np.int64),
        areas=np.zeros(0, np.float32),
        crowd=np.zeros(0, bool),
    )
    _, target = raw_sample(record, ProposalCache(cache.folder, cache.settings, nothing))
    assert target["proposals"].shape == (0, 4)


def test_second_run_computes_what_is_missing(images: list[Path], cache: ProposalCache) -> None:
    precompute(images[:3], cache)
    before = {path: path.stat().st_mtime_ns for path in _files(cache)}
    summary = precompute(images, cache)
    assert (summary.computed, summary.present) == (2, 3)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_missing_proposals_name_all_settings_and_the_command(
    images: list[Path], tmp_path: Path
) -> None:
    from rcnn_ext.cli import main

    settings = SearchSettings(mode="fast", scale=(60.0, 90.0), min_size=30)
    cache = ProposalCache(tmp_path / "with space", settings)
    with pytest.raises(UserError) as error:
        cache.boxes(images[0])
    text, _, command = str(error.value).partition("; compute them with: ")
    for value in settings.resolved().values():
        assert str(value) in text
    assert "--mode fast --scale 60.0 90.0 --min-size 30" in command
    program, *arguments = shlex.split(command.replace("IMAGES", str(images[0])))
    assert program == "rcnn-ext"
    assert main(arguments) == 0
    assert len(cache.boxes(images[0]))


def test_key_is_content_and_settings(images: list[Path], cache: ProposalCache) -> None:
    precompute(images[:1], cache)
    moved = images[0].rename(images[0].with_name("moved.png"))
    assert len(cache.boxes(moved))
    other = ProposalCache(cache.folder, dataclasses.replace(cache.settings, scale=101.0))
    with pytest.raises(UserError, match=r"no proposals for .*moved\.png with .*101"):
        other.boxes(moved)
    Image.fromarray(smooth_noise(9, 30, 30)).save(moved)
    with pytest.raises(UserError, match="no proposals"):
        cache.boxes(moved)


@pytest.mark.parametrize("length", [0, 4, 60])
def test_damaged_file_is_named_and_computed_anew(
    images: list[Path], cache: ProposalCache, length: int
) -> None:
    precompute(images[:1], cache)
    right = cache.boxes(images[0])
    (path,) = _files(cache)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=f"{path.name} are damaged"):
        cache.boxes(images[0])
    assert precompute(images[:1], cache).computed == 1
    np.testing.assert_array_equal(cache.boxes(images[0]), right)


def test_broken_image_is_named_and_stops_nobody(images: list[Path], cache: ProposalCache) -> None:
    images[1].write_bytes(images[1].read_bytes()[:200])
    images[2].write_text("no picture")
    summary = precompute(images, cache)
    assert summary.computed == 3
    assert len(summary.broken) == 2
    assert sum("1.png" in line for line in summary.broken) == 1
    assert sum("2.png" in line for line in summary.broken) == 1


def test_failed_write_leaves_nothing(
    images: list[Path], cache: ProposalCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions = find_regions(Image.open(images[0]), cache.settings)
    no_space = "No space left on device"
    for error in (OSError(28, no_space), SafetensorError(f"Io error: {no_space}")):

        def fail(*args: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("safetensors.numpy.save_file", fail)
        with pytest.raises(UserError, match=rf"cannot write {cache.folder}.*{no_space}"):
            cache.write(images[0].read_bytes(), CachedRegions(regions, 40, 50))
        assert _files(cache) == []


def test_stop_leaves_whole_files_and_the_next_run_goes_on(
    images: list[Path], cache: ProposalCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rcnn_ext.progress import Progress

    advance = Progress.advance

    def stop_after_two(self: Progress, by: int = 1, note: str = "") -> None:
        advance(self, by, note)
        if self._done >= 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "advance", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        precompute(images, cache, workers=1)
    monkeypatch.undo()
    done = _files(cache)
    assert 2 <= len(done) <= len(images)
    assert all(path.suffix == ".safetensors" and path.name[0] != "." for path in done)
    assert precompute(images, cache).present == len(done)


def test_ranks_share_the_images_out(images: list[Path], cache: ProposalCache) -> None:
    shares = [
        precompute(images, cache, processes=Processes(rank, 2, rank, 2)).computed
        for rank in range(2)
    ]
    assert shares == [3, 2]
    assert len(_files(cache)) == 5


def test_the_command_takes_its_share(images: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rcnn_ext", "selective-search", str(images[0].parent)]
    ranks = {"RANK": "1", "WORLD_SIZE": "2"}
    for more, variables, count in (
        ([], ranks, 2),
        (["--shard", "1/2"], ranks, 3),
        (["--shard", "1/1"], ranks, 5),
    ):
        done = subprocess.run(
            [*command, "--out", str(tmp_path / f"of-{count}"), *more],
            capture_output=True,
            text=True,
            env={**os.environ, **variables},
        )
        assert f"{count} images searched" in done.stdout


def test_regions_that_cannot_be_written_cost_their_image(
    images: list[Path], cache: ProposalCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ProposalCache.write

    def full_at_first(self: ProposalCache, content: bytes, regions: CachedRegions) -> None:
        if content == images[0].read_bytes():
            raise UserError("cannot write F: No space left on device")
        write(self, content, regions)

    monkeypatch.setattr(ProposalCache, "write", full_at_first)
    summary = precompute(images, cache)
    assert summary.computed == 4
    assert summary.broken == [f"{images[0]}: cannot write F: No space left on device"]


def test_torchrun_ends_no_process_for_the_image_of_another(
    images: list[Path], tmp_path: Path
) -> None:
    images[0].write_text("no picture")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "rcnn_ext", "selective-search"]
    command += [str(images[0].parent), "--out", str(tmp_path / "p")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1, done.stderr  # torchrun's own
    assert "2 images searched" in done.stdout
    assert "0.png is not an image that Pillow can read; the others are done" in done.stderr
    assert len(list((tmp_path / "p").rglob("*.safetensors"))) == 4


def test_two_processes_at_once(images: list[Path], cache: ProposalCache) -> None:
    # Both start on the same images: whoever is second replaces a whole file by an equal one.
    command = [sys.executable, "-m", "rcnn_ext", "selective-search", str(images[0].parent)]
    command += ["--out", str(cache.folder), "--scale", "100", "--sigma", "0.9"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "could not be done" in output
    assert len(_files(cache)) == 5
    assert all(len(cache.boxes(path)) for path in images)


def test_package_runs_in_processes(images: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("selectivesearch")
    cache = ProposalCache(tmp_path / "p", SearchSettings(backend="package", scale=100.0))
    assert precompute(images[:1], cache, workers=1).computed == 1
    assert len(cache.boxes(images[0]))


def test_command_reports_and_fails_on_broken_images(images: list[Path], tmp_path: Path) -> None:
    images[0].write_text("no picture")
    command = [sys.executable, "-m", "rcnn_ext", "selective-search", str(images[0].parent)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "p"), "--mode", "single", "--workers", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "RANK": "0", "WORLD_SIZE": "1"},
    )
    assert done.returncode == 2
    assert "4 images searched" in done.stdout
    assert "0.png is not an image that Pillow can read" in done.stdout
    refused = subprocess.run(
        [*command, "--out", str(tmp_path / "p"), "--scale", "-1"], capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith("rcnn-ext: scale: expected a finite number of at least 0")


def test_every_flipped_bit_is_noticed_or_harmless(images: list[Path], cache: ProposalCache) -> None:
    precompute(images[:1], cache)
    (path,) = _files(cache)
    whole, content = cache.read(images[0]), path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for place in random.integers(len(content), size=300):
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        message = None
        try:
            found = cache.read(images[0])
        except UserError as error:
            message = str(error)
        if message is not None:
            assert "are damaged" in message
            assert not cache.has(images[0].read_bytes())
            refused += 1
            continue
        np.testing.assert_array_equal(found.regions.boxes, whole.regions.boxes)
        np.testing.assert_array_equal(found.regions.sizes, whole.regions.sizes)
        assert (found.height, found.width) == (whole.height, whole.width)
    assert refused > 200
