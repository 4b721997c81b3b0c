"""WIDER FACE: one text file per split, with a picture's name, its number of faces, and a line each.

http://shuoyang1213.me/WIDERFACE/
"""

from __future__ import annotations

from pathlib import Path

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import RawObject, ReadOptions, SetBuilder
from rcnn_ext.data.formats.format import Format, named_annotations, named_images
from rcnn_ext.data.formats.listed_objects import ListedImage, add_listed
from rcnn_ext.data.formats.picture_names import PictureFinder
from rcnn_ext.data.formats.split_names import SPLIT_NAMES, SPLITS
from rcnn_ext.data.images import IMAGE_SUFFIXES
from rcnn_ext.data.problems import Report
from rcnn_ext.data.text_files import read_lines, whole_number
from rcnn_ext.errors import UserError

# x, y, width, height, blur, expression, illumination, invalid, occlusion, pose
_NUM_VALUES = 10
_INVALID = 7


def find_widerface(root: Path, split: str) -> Path | None:
    """Return the file of a split: its boxes, or for the test the list of its pictures."""
    for folder in (root / "wider_face_split", root):
        for name in (f"wider_face_{split}_bbx_gt.txt", f"wider_face_{split}_filelist.txt"):
            if (folder / name).is_file():
                return folder / name
    return None


def _read_split(config: DataConfig, root: Path, split: str, options: ReadOptions) -> AnnotationSet:
    named = named_annotations(config, split)
    path = root / named if named else find_widerface(root, split)
    if path is None:
        raise UserError(
            f"no WIDER FACE file for {split} in {root}: looked for "
            f"wider_face_split/wider_face_{split}_bbx_gt.txt; name it with "
            f"data.{split}_annotations=PATH"
        )
    builder = SetBuilder(path, options)
    name = options.classes[0] if options.classes and len(options.classes) == 1 else "face"
    builder.declare([(name, 1)])
    lines = read_lines(path, options.encoding)
    annotated = not path.stem.endswith("filelist")
    if annotated:
        images = _scan(path, lines, builder.report)
    else:
        images = {
            line.strip(): ListedImage([(number, "")])
            for number, line in enumerate(lines, start=1)
            if line.strip()
        }
    if not images:
        raise UserError(f"{path} lists no images")

    def parse(text: str, size: tuple[int, int], line: int) -> list[RawObject]:
        words = text.split()
        if not words:
            return []
        if len(words) not in (4, _NUM_VALUES):
            raise ValueError(f"{len(words)} values; a face has {_NUM_VALUES}: x y w h and six more")
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise ValueError(f"not numbers: {text!r}") from None
        x, y, width, height = values[:4]
        invalid = len(values) > _INVALID and values[_INVALID] == 1
        return [RawObject((x, y, x + width, y + height), name, line, difficult=invalid)]

    folder = named_images(config, root, split)
    finder = PictureFinder([folder] if folder is not None else _folders(root, path, split))
    add_listed(builder, path, finder, images, parse, repeats_break=False)
    return builder.finish(annotated=annotated, looked_for=f"wider_face_{split}_bbx_gt.txt")


def _folders(root: Path, path: Path, split: str) -> list[Path]:
    places = []
    for parent in (root, path.parent, path.parent.parent):
        for word in SPLIT_NAMES[split]:
            places += [parent / f"WIDER_{word}" / "images", parent / word / "images", parent / word]
        places += [parent / "images", parent]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def _scan(path: Path, lines: list[str], report: Report) -> dict[str, ListedImage[str]]:
    """Return the lines of the faces of each picture."""
    images: dict[str, ListedImage[str]] = {}
    index = 0
    while index < len(lines):
        text, line = lines[index].strip(), index + 1
        index += 1
        if not text:
            continue
        if not _is_name(text):
            report.error(path, line, f"{text[:80]!r} stands where the name of a picture is due")
            while index < len(lines) and not _is_name(lines[index].strip()):
                index += 1
            continue
        image = images.setdefault(text, ListedImage())
        counted = lines[index].strip() if index < len(lines) else ""
        count = whole_number(counted)
        if count is None:
            report.error(path, line + 1, f"{counted[:80]!r} is not the number of faces of {text}")
            image.rows.append((line, ""))
            image.broken = True
            while index < len(lines) and not _is_name(lines[index].strip()):
                index += 1
            continue
        index += 1
        faces: list[tuple[int, str]] = []
        while index < len(lines) and not _is_name(lines[index].strip()):
            if lines[index].strip():
                faces.append((index + 1, lines[index].strip()))
            index += 1
        # Pictures without faces have a line of zeros.
        if count == 0 and len(faces) <= 1 and not "".join(f for _, f in faces).strip("0 "):
            faces = []
        if len(faces) != count:
            report.error(path, line + 1, f"{count} faces of {text}, but {len(faces)} lines follow")
            image.broken = True
        image.rows += faces or [(line, "")]
    return images


def _is_name(text: str) -> bool:
    return Path(text).suffix.lower() in IMAGE_SUFFIXES


FORMAT = Format(
    "wider_face_split/wider_face_train_bbx_gt.txt (WIDER FACE)",
    lambda root: any(find_widerface(root, split) is not None for split in SPLITS),
    lambda config, root, split: find_widerface(root, split) is not None,
    _read_split,
    lambda path: path.name.startswith("wider_face_") and path.suffix.lower() == ".txt",
)
