"""The native selective search against the `selectivesearch` package and OpenCV.

    python benchmarks/selective_search.py [--images FOLDER] [--every N] [--recall-every N]
                                          [--only PART,...]

Parts: ``parity`` (regions equal to the package's, image by image, with CPU times of one thread,
interleaved), ``speed`` (parity at 600 x 1000 pixels), ``recall`` (of annotated boxes), ``threads``
(several images at once) and ``growth`` (up to 12 megapixels). Prints tables and writes a JSON into
``benchmarks/results`` with device, versions, date and the hash of ``csrc/``; parts measured earlier
on that day from equal sources are replaced. Once it has all parts of all images, it also writes the
tables into ``docs/selective_search.md``.

All 128 images take some 13 minutes on a quiet core, 9 of them for the package (with its own sort
and with a stable one); recall is of every fourth, since OpenCV's fast mode takes seconds for each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import selectivesearch
import torch
from PIL import Image
from selective_search_tables import IDENTITY, PEERS, summary, update_docs
from skimage.segmentation import _felzenszwalb_cy

from rcnn_ext import _environment, files, ops
from rcnn_ext._source_hash import csrc_hash
from rcnn_ext.bench import memory
from rcnn_ext.selective_search import (
    ProposalFilter,
    Regions,
    SearchSettings,
    compat,
    find_regions,
    native,
)
from rcnn_ext.selective_search.images import UNIT, gaussian_weights

PARTS = ("parity", "speed", "recall", "threads", "growth")
ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = (500, 0.9, 10)  # scale, sigma, min_size
NATIVE = SearchSettings()
OPENCV = SearchSettings(backend="opencv", scale=200, sigma=0.8)  # OpenCV's own parameters
OPENCV_FAST = SearchSettings(backend="opencv", mode="fast", scale=(150, 300), sigma=0.8)


class _StableNumpy:
    """NumPy, but argsort keeps the order of equal values."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def argsort(self, values: np.ndarray) -> np.ndarray:
        return np.argsort(values, kind="stable")


@contextmanager
def edges_sorted(stably: bool) -> Iterator[None]:
    """Let scikit-image's felzenszwalb sort its edges stably, or as NumPy's default sort does."""
    _felzenszwalb_cy.np = _StableNumpy() if stably else np
    try:
        yield
    finally:
        _felzenszwalb_cy.np = np


def search_with_package(image: np.ndarray, stably: bool) -> tuple[np.ndarray, list[dict]]:
    with edges_sorted(stably), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return selectivesearch.selective_search(image, *PARAMETERS)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.thread_time()
    result = call()
    return time.thread_time() - start, result


def best_of(runs: int, call: Callable[[], Any]) -> float:
    return min(timed(call)[0] for _ in range(runs))


def compare(image: np.ndarray, stably: bool) -> dict[str, Any]:
    """Compare the package's result with the native one, and time both and OpenCV in turns."""
    native_times = [timed(lambda: find_regions(image, NATIVE))[0] for _ in range(2)]
    package_time, (expected_image, expected) = timed(lambda: search_with_package(image, stably))
    opencv_time = best_of(2, lambda: find_regions(image, OPENCV))
    native_times += [timed(lambda: find_regions(image, NATIVE))[0] for _ in range(2)]
    got_image, got = compat.selective_search(image, *PARAMETERS)

    def same(key: str) -> bool:
        return [region[key] for region in got] == [region[key] for region in expected]

    return {
        "height": image.shape[0],
        "width": image.shape[1],
        "regions": len(got),
        "same_label_image": bool(np.array_equal(got_image, expected_image)),
        "same_rects": same("rect"),
        "same_sizes": same("size"),
        "same_labels": same("labels"),
        "native_s": min(native_times),
        "package_s": package_time,
        "opencv_s": opencv_time,
    }


def tied_edges(image: np.ndarray) -> int:
    """Count the edges of the pixel graph that cost exactly as much as another."""
    from skimage.filters import gaussian

    smooth = gaussian(image / 255.0, sigma=PARAMETERS[1], mode="reflect", channel_axis=-1)
    pairs = [
        (smooth[:, 1:], smooth[:, :-1]),
        (smooth[1:], smooth[:-1]),
        (smooth[1:, 1:], smooth[:-1, :-1]),
        (smooth[1:, :-1], smooth[:-1, 1:]),
    ]
    costs = np.concatenate([np.sqrt(((a - b) ** 2).sum(axis=-1)).ravel() for a, b in pairs])
    _, counts = np.unique(costs, return_counts=True)
    return int(counts[counts > 1].sum())


def parity(paths: list[Path]) -> dict[str, Any]:
    """Compare with the package as installed; where that differs, tell why. Speed comes along."""
    rows = []
    for path in paths:
        image = read(path)
        row = {"image": path.name, **compare(image, stably=False)}
        if not all(row[key] for key in IDENTITY):
            row["tied_edges"] = tied_edges(image)
            row["stable"] = {key: compare(image, stably=True)[key] for key in IDENTITY}
        rows.append(row)
        print(f"{path.name}: {row['package_s'] / row['native_s']:.0f}x", flush=True)
    return {"rows": rows}


def stable_parity(paths: list[Path]) -> dict[str, Any]:
    rows = []
    for path in paths:
        row = compare(read(path), stably=True)
        rows.append({"image": path.name, **{key: row[key] for key in IDENTITY}})
    return {"rows": rows}


def speed(paths: list[Path]) -> dict[str, Any]:
    """Compare at the size of Fast R-CNN: shorter side 600, longer side at most 1000."""
    rows = []
    for path in paths[::8]:
        picture = Image.open(path).convert("RGB")
        ratio = min(600 / min(picture.size), 1000 / max(picture.size))
        size = tuple(round(side * ratio) for side in picture.size)
        image = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
        rows.append({"image": path.name, **compare(image, stably=True)})
        print(
            f"{path.name} {size}: {rows[-1]['package_s'] / rows[-1]['native_s']:.0f}x", flush=True
        )
    return {"rows": rows}


def recall(paths: list[Path], folder: Path) -> dict[str, Any]:
    """Measure the overlap of annotated boxes with the best proposal, for each search."""
    truth = annotations(folder)
    contenders: dict[str, Callable[[np.ndarray], Regions]] = {
        "package": lambda image: regions_of(search_with_package(image, stably=False)[1]),
        "native single": lambda image: find_regions(image, NATIVE),
        "native fast": lambda image: find_regions(image, SearchSettings(mode="fast")),
        "native quality": lambda image: find_regions(image, SearchSettings(mode="quality")),
        "opencv single": lambda image: find_regions(image, OPENCV),
        "opencv fast": lambda image: find_regions(image, OPENCV_FAST),
    }
    chosen = [path for path in paths if path.name in truth]
    overlaps: dict[str, list[float]] = {name: [] for name in contenders}
    first_2000: dict[str, list[float]] = {name: [] for name in contenders}
    counts: dict[str, list[int]] = {name: [] for name in contenders}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for path in chosen:
        image = read(path)
        boxes = torch.tensor(truth[path.name])  # [G, 4]
        for name, search in contenders.items():
            seconds, found = timed(lambda search=search, image=image: search(image))
            regions = ProposalFilter()(found, *image.shape[:2])
            iou = ops.box_iou(boxes, torch.from_numpy(regions.enclosing_boxes()))  # [G, N]
            overlaps[name] += iou.max(dim=1).values.tolist()
            first_2000[name] += iou[:, :2000].max(dim=1).values.tolist()
            counts[name].append(len(regions))
            times[name].append(seconds)
        print(path.name, flush=True)
    return {
        "images": len(chosen),
        "boxes": len(next(iter(overlaps.values()))),
        "searches": {
            name: {
                "proposals": statistics.mean(counts[name]),
                "recall_50": float(np.mean(np.array(values) >= 0.5)),
                "recall_70": float(np.mean(np.array(values) >= 0.7)),
                "average_best_overlap": float(np.mean(values)),
                "recall_50_first_2000": float(np.mean(np.array(first_2000[name]) >= 0.5)),
                "median_s": statistics.median(times[name]),
            }
            for name, values in overlaps.items()
        },
    }


def regions_of(found: list[dict]) -> Regions:
    rects = np.array([region["rect"] for region in found], dtype=np.int32)
    rects[:, 2:] += rects[:, :2]
    return Regions(rects, np.array([region["size"] for region in found], dtype=np.int64))


def annotations(folder: Path) -> dict[str, list[list[float]]]:
    """Read boxes (x1, y1, x2, y2), image pixels, by file name."""
    boxes: dict[str, list[list[float]]] = {}
    for path in sorted(folder.glob("instances_*.json")):
        data = json.loads(path.read_text())
        names = {image["id"]: Path(image["file_name"]).name for image in data["images"]}
        for annotation in data["annotations"]:
            x, y, width, height = annotation["bbox"]
            if not annotation.get("iscrowd"):
                boxes.setdefault(names[annotation["image_id"]], []).append(
                    [x, y, x + width, y + height]
                )
    return boxes


def threads(paths: list[Path]) -> dict[str, Any]:
    """Measure images per second with several threads, wall clock, the best of three."""
    images = [read(path) for path in paths[:32]]
    cores = len(os.sched_getaffinity(0))
    rates = {}
    for count in sorted({1, 2, cores // 2, cores} - {0}):
        if count > cores:
            continue
        with ThreadPoolExecutor(count) as pool:
            seconds = []
            for _ in range(3):
                start = time.perf_counter()
                list(pool.map(lambda image: len(find_regions(image, NATIVE)), images))
                seconds.append(time.perf_counter() - start)
        rates[str(count)] = len(images) / min(seconds)
    return {"images_per_s": rates}


def growth(paths: list[Path]) -> dict[str, Any]:
    """Measure CPU time by size, on mosaics of photographs, so that detail grows with the pixels."""
    tiles = [np.asarray(Image.open(path).convert("RGB").resize((640, 480))) for path in paths[:48]]
    rows = []
    for down, across in ((1, 1), (2, 2), (3, 4), (4, 6), (6, 7)):
        chosen = iter(tiles[i % len(tiles)] for i in range(down * across))
        lines = [np.concatenate([next(chosen) for _ in range(across)], axis=1) for _ in range(down)]
        image = np.concatenate(lines, axis=0)
        # Small images take more runs: interruptions weigh most there.
        runs = 3 if image.size > 3e6 else 12
        seconds = best_of(runs, lambda image=image: find_regions(image, NATIVE))
        peak = memory.resident_peak(lambda image=image: find_regions(image, NATIVE))
        segments, pairs = count_pairs(image)
        rows.append(
            {
                "megapixels": image.shape[0] * image.shape[1] / 1e6,
                "native_s": seconds,
                "peak_bytes": None if peak is None else peak.highest - peak.before,
                "segments": segments,
                "pairs": pairs,
            }
        )
    return {"rows": rows}


def count_pairs(image: np.ndarray) -> tuple[int, int]:
    """Count the segments, and the pairs whose similarity the package's definition asks for.

    Those are the pairs of neighbors at first, and of each union with its neighbors then.
    """
    scale, sigma, min_size = PARAMETERS
    _, boxes, _, merged = native.load().selectivesearch_compat(
        image, UNIT, gaussian_weights(sigma), scale, min_size
    )
    segments = len(boxes) - len(merged)
    x1, y1, x2, y2 = boxes[:segments].T
    neighbors: list[set[int]] = [set() for _ in range(segments)]
    for a in range(segments):
        columns = ((x1 > x1[a]) & (x1 < x2[a])) | ((x2 > x1[a]) & (x2 < x2[a]))
        rows = ((y1 > y1[a]) & (y1 < y2[a])) | ((y2 > y1[a]) & (y2 < y2[a]))
        for b in (np.flatnonzero((columns & rows)[a + 1 :]) + a + 1).tolist():
            neighbors[a].add(b)
            neighbors[b].add(a)
    pairs = sum(len(found) for found in neighbors) // 2
    for union, (a, b) in enumerate(merged.tolist(), start=segments):
        found = (neighbors[a] | neighbors[b]) - {a, b}
        for other in found:
            neighbors[other] -= {a, b}
            neighbors[other].add(union)
        neighbors[a] = neighbors[b] = set()
        neighbors.append(found)
        pairs += len(found)
    return segments, pairs


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def is_comparable(earlier: dict[str, Any], results: dict[str, Any]) -> bool:
    """Return whether two results are of equal sources and images."""
    sources = [result["environment"].get("selective_search_hash") for result in (earlier, results)]
    return sources[0] == sources[1] and earlier.get("every") == results["every"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, default=Path("../shared/data/coco"))
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th image")
    parser.add_argument(
        "--recall-every", type=int, default=4, metavar="N", help="and of those for the recall"
    )
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    parts = options.only.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--only: expected some of {', '.join(PARTS)}, got {options.only}")
    paths = sorted(options.images.rglob("*.jpg"))[:: options.every]
    if not paths:
        parser.error(f"--images: no *.jpg under {options.images}")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    description = _environment.describe(torch.device("cpu"))
    # Sources of other operators do not make these figures stale.
    description["selective_search_hash"] = csrc_hash(ROOT / "csrc" / "selective_search")
    for distribution in PEERS:
        description["versions"][distribution] = _environment.installed_version(distribution)
    results: dict[str, Any] = {"environment": description, "parameters": PARAMETERS}
    results["every"] = [options.every, options.recall_every]
    if "parity" in parts:
        results["parity"] = parity(paths)
        results["stable_parity"] = stable_parity(paths)
    if "speed" in parts:
        results["speed"] = speed(paths)
    if "recall" in parts:
        results["recall"] = recall(paths[:: options.recall_every], options.images)
    if "threads" in parts:
        results["threads"] = threads(paths)
    if "growth" in parts:
        results["growth"] = growth(paths)
    target = options.out / f"{description['date'][:10]}-selective-search.json"
    if target.is_file():
        earlier = json.loads(target.read_text())
        if is_comparable(earlier, results):
            results = {**earlier, **results}
    lines = summary(results)
    print("\n".join(lines))
    if options.every == 1 and set(PARTS) <= set(results):
        update_docs(lines)
    files.write_json(target, results)
    print(target)


if __name__ == "__main__":
    main()
