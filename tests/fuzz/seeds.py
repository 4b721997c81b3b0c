"""Small whole files that the fuzzer damages, each with the commands that read it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features

from rcnn_ext.config import ModelConfig, Recipe
from rcnn_ext.config.selective_search import SearchSettings
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.data.images import IMAGE_SUFFIXES
from rcnn_ext.export import export
from rcnn_ext.models.from_config import build_model
from rcnn_ext.predict.checkpoint import PREFIX, SavedDetector, describe
from rcnn_ext.selective_search.cache import CachedRegions, ProposalCache
from rcnn_ext.selective_search.regions import Regions
from tests.helpers import layouts, made_data, text_layouts, tool_layouts

# What takes a folder, and the model and the whole data that it may need.
Commands = Callable[[Path, Path], list[list[str]]]

SIDE = 32
RECIPE = """\
# A localizer that trains in a second.
model: {detector: localizer, backbone: cnn, fixed_size: [32, 32]}
data:
  batch_size: 2
  workers: 0
  format: coco
schedule:
  steps: 1
  decay: constant
optimizer: {name: sgd, lr: 0.01}
seed: 3
"""


@dataclass(frozen=True)
class Seed:
    """A folder of whole files.

    Attributes:
        make: Fills an empty folder.
        commands: What to run, given the folder and one with a model and whole data.
        damaged: The endings of the files that are damaged; empty: of any.
    """

    make: Callable[[Path], object]
    commands: Commands
    damaged: Sequence[str] = ()


def small_model() -> SavedDetector:
    """A localizer of three classes that nobody trained."""
    config = ModelConfig(detector="localizer", backbone="cnn", fixed_size=(SIDE, SIDE))
    torch.manual_seed(0)
    weights = build_model(config, 3, pretrained=False).state_dict()
    classes = ClassList(("cat", "dog"), (1, 2))
    return SavedDetector(Path(), Recipe(model=config), classes, 3, {}, weights)


def write_checkpoint(path: Path) -> None:
    saved = small_model()
    entry = describe(saved.recipe, saved.classes, saved.step, saved.state)
    weights = {f"{PREFIX}{name}": value for name, value in saved.weights.items()}
    torch.save({"state_dict": weights, **entry}, path)


def make_support(folder: Path) -> None:
    """Write the model and the whole data that commands take beside what is damaged."""
    export(small_model(), folder / "model.safetensors")
    layouts.fiftyone_coco(folder / "data")
    Image.new("RGB", (40, 20), (90, 90, 200)).save(folder / "picture.png")
    (folder / "recipe.yaml").write_text(RECIPE)


def _check(root: Path, support: Path) -> list[list[str]]:
    return [["check", str(root)], ["check", str(root), "data.on_error=skip", "--workers", "1"]]


def _train(root: Path, support: Path) -> list[list[str]]:
    skip = ["data.on_error=skip", "runtime.loggers=[csv]"]
    command = ["train", str(support / "recipe.yaml"), "--data", str(root), "--max-steps", "1"]
    return [[*command, "--out", str(root.parent / "out"), "--overwrite", *skip]]


def _pictures(root: Path, support: Path) -> list[list[str]]:
    out = str(root.parent / "out")
    detect = ["detect", str(support / "model.safetensors"), str(root), "--out", out]
    return [[*detect, "--min-score", "0"], ["check", str(root), "--format", "yolo"]]


def _detect_with(name: str) -> Commands:
    def commands(root: Path, support: Path) -> list[list[str]]:
        out = ["--out", str(root.parent / "out")]
        return [
            ["detect", str(root / name), str(support / "picture.png"), *out, "--no-pictures"],
            ["eval", str(root / name), "--data", str(support / "data"), *out, "--split", "train"],
        ]

    return commands


def _recipe(root: Path, support: Path) -> list[list[str]]:
    return [["check", str(support / "data"), "--recipe", str(root / "recipe.yaml")]]


def _archive(root: Path, support: Path) -> list[list[str]]:
    (archive,) = root.iterdir()
    return [["check", str(archive)]]


def _proposals(root: Path, support: Path) -> list[list[str]]:
    return [["selective-search", str(support / "picture.png"), "--out", str(root)]]


def write_pictures(root: Path) -> None:
    """Write a picture of each suffix and mode that Pillow writes, with labels beside."""
    root.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(0, 255, (24, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    for suffix in IMAGE_SUFFIXES:
        for mode in ("RGB", "L", "P", "1", "RGBA", "CMYK", "I;16", "F"):
            path = root / f"{mode.replace(';', '')}_{suffix[1:]}{suffix}"
            exif = Image.Exif()
            exif[0x0112] = 6
            try:
                made = picture.convert("L").convert("I").convert(mode) if ";" in mode else picture
                made.convert(mode).save(path, exif=exif)
            except (KeyError, OSError, ValueError, SystemError, AttributeError):
                path.unlink(missing_ok=True)
            else:
                path.with_suffix(".txt").write_text("0 0.5 0.5 0.5 0.5\n")


def write_proposals(root: Path) -> None:
    cache = ProposalCache(root, SearchSettings())
    boxes = np.array([[0, 0, 30, 18], [4, 4, 20, 12]], dtype=np.int32)
    picture = root.parent / "picture.png"
    Image.new("RGB", (40, 20), (90, 90, 200)).save(picture)
    sizes = np.array([100, 60], dtype=np.int64)
    cache.write(picture.read_bytes(), CachedRegions(Regions(boxes, sizes), 20, 40))


def _archived(form: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        source = root.parent / "source"
        layouts.fiftyone_coco(source)
        root.mkdir(exist_ok=True)
        shutil.make_archive(str(root / "data"), form, source)
        shutil.rmtree(source)

    return make


def _weights(root: Path) -> None:
    root.mkdir(exist_ok=True)
    export(small_model(), root / "model.safetensors")


def _program(root: Path) -> None:
    root.mkdir(exist_ok=True)
    export(small_model(), root / "model.pt2")


def _checkpoint(root: Path) -> None:
    root.mkdir(exist_ok=True)
    write_checkpoint(root / "model.ckpt")


def _recipe_file(root: Path) -> None:
    root.mkdir(exist_ok=True)
    (root / "recipe.yaml").write_text(RECIPE)


TEXTS = (*(".json", ".jsonl", ".csv", ".xml", ".yaml", ".txt", ".names", ".data", ".md", ".tsv"),)

SEEDS: dict[str, Seed] = {
    "pictures": Seed(write_pictures, _pictures, tuple(IMAGE_SUFFIXES)),
    "recipe": Seed(_recipe_file, _recipe),
    "checkpoint": Seed(_checkpoint, _detect_with("model.ckpt")),
    "safetensors": Seed(_weights, _detect_with("model.safetensors")),
    "program": Seed(_program, _detect_with("model.pt2")),
    "proposals": Seed(write_proposals, _proposals),
    "zip": Seed(_archived("zip"), _archive),
    "tar": Seed(_archived("tar"), _archive),
    "tar.gz": Seed(_archived("gztar"), _archive),
    "VOCdevkit": Seed(made_data.as_voc, _check, TEXTS),
    "PennFudan": Seed(made_data.as_pennfudan, _check, (".png",)),
    "training on COCO": Seed(layouts.fiftyone_coco, _train, (".json",)),
    "training on VOC": Seed(layouts.labelimg_voc, _train, (".xml",)),
    "training on CSV": Seed(layouts.roboflow_csv, _train, (".csv",)),
    "training on YOLO": Seed(layouts.fiftyone_yolo, _train, (".txt", ".yaml")),
}
for _tools in (layouts.LAYOUTS, text_layouts.TOOLS, tool_layouts.TOOLS):
    for _name, _layout in _tools.items():
        SEEDS[_name] = Seed(_layout[0], _check, TEXTS)
for _make in (
    text_layouts.global_wheat_2020,
    text_layouts.global_wheat_2021,
    text_layouts.visdrone,
    text_layouts.widerface,
):
    SEEDS[_make.__name__] = Seed(_make, _check, TEXTS)
assert features.check("zlib"), "PNG files need zlib"
