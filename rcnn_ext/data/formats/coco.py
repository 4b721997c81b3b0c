"""COCO-format detection data: finding the files of a folder, and reading them.

Format: https://cocodataset.org/#format-data. Segmentations are not read.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import RawObject, ReadOptions, SetBuilder
from rcnn_ext.data.formats.format import Format, named_annotations, named_images
from rcnn_ext.data.formats.split_names import SPLIT_NAMES, SPLITS, splits_in_name
from rcnn_ext.data.json_places import JsonPlaces
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError
from rcnn_ext.files import read_json

# How many of the images are tried where one is enough to know their folder: some may be missing.
_MAX_TRIED = 20


def list_annotations(root: Path | str, split: str) -> list[Path]:
    """List the annotation files of a split, which should be one.

    ``instances_<split>*.json`` in ``root/annotations`` or ``root`` (COCO's own layout has a year
    after the split), ``<split>.json`` in the same places, or ``_annotations.coco.json`` in
    ``root/<split>`` (the layout of some annotation tools); the first of these that there is. For
    training, where there are none for any split, all COCO files in ``root/annotations``, or else
    in ``root``, whose names have no split in them.

    Args:
        root: Folder of the data set.
        split: ``train``, ``val`` or ``test``.

    Raises:
        UserError: There is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"the data folder {root} does not exist")
    found = _named_annotations(root, split)
    if found or split != "train":
        return found
    if _named_annotations(root, "val") or _named_annotations(root, "test"):
        return []
    for folder in (root / "annotations", root):
        unnamed = (path for path in folder.glob("*.json") if not splits_in_name(path.stem))
        found = sorted(path for path in unnamed if _has_coco_sections(path))
        if found:
            return found
    return []


def _named_annotations(root: Path, split: str) -> list[Path]:
    for spelling in SPLIT_NAMES[split]:
        patterns = (
            f"annotations/instances_{spelling}*.json",
            f"instances_{spelling}*.json",
            f"annotations/{spelling}.json",
            f"{spelling}.json",
            f"{spelling}/_annotations.coco.json",
        )
        for pattern in patterns:
            found = sorted(root.glob(pattern))
            if found:
                return found
    return []


def _has_coco_sections(path: Path) -> bool:
    """Return whether the words of a detection file are in it, without reading it as JSON."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            sections = (b'"images"', b'"annotations"', b'"categories"')
            return all(text.find(section) >= 0 for section in sections)
    except (OSError, ValueError):  # An empty file cannot be mapped.
        return False


def find_annotations(root: Path | str, split: str) -> Path:
    """Find the annotation file of a split where :func:`list_annotations` looks.

    Raises:
        UserError: There is none, or there are several.
    """
    root = Path(root)
    found = list_annotations(root, split)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise UserError(
            f"{root} has several annotation files for {split}: {names}; "
            f"choose one with data.{split}_annotations=PATH"
        )
    raise UserError(
        f"no COCO annotation file for {split} in {root}: looked for "
        f"annotations/instances_{split}*.json, instances_{split}*.json, {split}.json and "
        f"{split}/_annotations.coco.json; name one with data.{split}_annotations=PATH"
    )


def find_images_folder(root: Path | str, annotations: Path | str, first_file: str) -> Path:
    """Find the folder that the file names of an annotation file start from.

    Args:
        root: Folder of the data set.
        annotations: The annotation file.
        first_file: The file name of one of its images.

    Raises:
        UserError: No candidate holds that image.
    """
    candidates = _image_folders(Path(root), Path(annotations))
    for candidate in candidates:
        if (candidate / first_file).is_file():
            return candidate
    tried = ", ".join(map(str, candidates))
    raise UserError(
        f"the images of {annotations} are in none of {tried} (looked for {first_file}); name "
        "their folder with data.train_images=PATH, data.val_images=PATH or data.test_images=PATH"
    )


def _image_folders(root: Path, annotations: Path) -> list[Path]:
    stem = annotations.stem.removeprefix("instances_")
    split = stem.rstrip("0123456789")
    names = [stem, f"images/{stem}", split, f"images/{split}", "images", "data", ""]
    candidates = [root / name for name in names]
    candidates += [annotations.parent, annotations.parent / "images"]
    return list(dict.fromkeys(candidates))


def _find_images(root: Path, annotations: Path, files: Sequence[str]) -> tuple[Path, bool]:
    """Return the folder of the images, and whether only the last parts of their names count.

    Tools write names as on the machine that they ran on: ``/data/upload/1/a.jpg``.
    """
    for last_part in (False, True):
        for file in files[:_MAX_TRIED]:
            try:
                name = _last_part(file) if last_part else file
                return find_images_folder(root, annotations, name), last_part
            except UserError:
                continue
    return find_images_folder(root, annotations, files[0]), False


def _last_part(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name


def read_coco(
    annotations: Path | str,
    images: Path | str | None = None,
    *,
    root: Path | str | None = None,
    classes: Sequence[str] | None = None,
    missing_classes_ok: bool = False,
    report: Report | None = None,
) -> AnnotationSet:
    """Read an annotation file and check all of it.

    Args:
        annotations: The JSON file. Without a list ``annotations`` it describes images of which
            nothing is known, as COCO's ``image_info_test`` files do.
        images: Folder that its file names start from; None looks for it below ``root``.
        root: Folder of the data set; by default that of the annotation file.
        classes: Names of the classes, which get labels 1, 2, ... in this order; objects of other
            categories are left out. None takes all categories of the file, ordered by id.
        missing_classes_ok: Whether ``classes`` may name some that the file does not know: a
            validation file need not have all.
        report: Where problems go; broken images are then left out. None raises for errors.

    Returns:
        The images in the order of the file.

    Raises:
        UserError: The file is missing or wrong, or images are missing; what and where is named.
    """
    options = ReadOptions(classes, missing_classes_ok, report=report)
    folder, top = (None if given is None else Path(given) for given in (images, root))
    return read_coco_with(Path(annotations), folder, top, options)


def read_coco_with(
    annotations: Path, images: Path | None, root: Path | None, options: ReadOptions
) -> AnnotationSet:
    """:func:`read_coco` with the options that all formats share."""
    document = read_json(annotations)
    if not isinstance(document, dict):
        raise UserError(f"{annotations} is not a COCO file: its top level is not an object")
    annotated = "annotations" in document or not annotations.stem.startswith("image_info")
    for section in ("images", "annotations", "categories") if annotated else ("images",):
        if not isinstance(document.get(section), list):
            raise UserError(f"{annotations} is not a COCO detection file: no list {section!r}")
    if not document["images"]:
        raise UserError(f"{annotations} lists no images")

    places = JsonPlaces(annotations)
    builder = SetBuilder(annotations, options, lambda index: places.line("annotations", index))
    scanner = _Scanner(annotations, places, builder.report)
    names = scanner.categories(document.get("categories", []), annotated)
    if annotated:
        builder.declare([(names[i], i) for i in sorted(names)])
    entries = scanner.images(document["images"], builder)
    objects, broken = scanner.objects(document.get("annotations", []), entries, names)
    if not entries or (annotated and not names):
        builder.report.raise_if_errors(annotations)
    last_part = False
    if images is None:
        files = [entry["file_name"] for _, entry in entries.values()]
        images, last_part = _find_images(root or annotations.parent, annotations, files)
    for image_id, (index, entry) in entries.items():
        width: Any = entry.get("width")
        height: Any = entry.get("height")
        known = _is_int(width) and _is_int(height) and width > 0 and height > 0
        path = images / (_last_part(entry["file_name"]) if last_part else entry["file_name"])
        bad = image_id in broken
        wanted = options.lines or not builder.exists(path)
        line = places.line("images", index) if wanted else None
        size = (width, height) if known else None
        builder.add(
            image_id, path, size, objects.get(image_id, []), (annotations, line), broken=bad
        )
    return builder.finish(annotated=annotated, looked_for=f"a list 'annotations' in {annotations}")


class _Scanner:
    """Checks the three lists of a file, entry by entry."""

    def __init__(self, path: Path, places: JsonPlaces, report: Report) -> None:
        self.path = path
        self.places = places
        self.report = report

    def categories(self, categories: list[Any], annotated: bool) -> dict[int, str]:
        """Names by category id."""
        names: dict[int, str] = {}
        for index, category in enumerate(categories):
            if not isinstance(category, dict) or not _is_int(category.get("id")):
                self._error("categories", index, "has no integer 'id'")
            elif not isinstance(category.get("name"), str):
                self._error("categories", index, f"(id {category['id']}) has no 'name'")
            elif category["id"] in names:
                self._error("categories", index, f"the id {category['id']} is used twice", ":")
            elif category["name"] in names.values():
                self._error(
                    "categories", index, f"the name {category['name']!r} is used twice", ":"
                )
            else:
                names[category["id"]] = category["name"]
        if annotated and not categories:
            self.report.error(self.path, None, "'categories' is empty")
        return names

    def images(
        self, images: list[Any], builder: SetBuilder
    ) -> dict[int, tuple[int, dict[str, Any]]]:
        """Index and entry by image id."""
        entries: dict[int, tuple[int, dict[str, Any]]] = {}
        for index, entry in enumerate(images):
            if not isinstance(entry, dict) or not _is_int(entry.get("id")):
                self._error("images", index, "has no integer 'id'")
            elif not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
                self._error("images", index, f"(id {entry['id']}) has no 'file_name'")
            elif entry["id"] in entries:
                first = entries[entry["id"]][0]
                self._error(
                    "images",
                    index,
                    f"the id {entry['id']} is used twice, first by images[{first}]",
                    ":",
                )
            else:
                entries[entry["id"]] = index, entry
                continue
            builder.skip()
        return entries

    def objects(
        self, annotations: list[Any], entries: dict[int, Any], names: dict[int, str]
    ) -> tuple[dict[int, list[RawObject]], set[int]]:
        """Return the objects by image id, and the ids of images with a broken one."""
        found: dict[int, list[RawObject]] = {}
        broken: set[int] = set()
        ids: set[int] = set()
        for index, item in enumerate(annotations):
            if not isinstance(item, dict):
                self._error("annotations", index, "is not an object")
                continue
            own: Any = item.get("id")
            what = f"annotations[{index}]" + (f" (id {own})" if own is not None else "")
            image_id: Any = item.get("image_id")
            box: Any = item.get("bbox")
            if not _is_int(image_id) or image_id not in entries:
                problem = f"no image has the id {image_id!r}"
            elif not _is_int(item.get("category_id")) or item["category_id"] not in names:
                problem = f"no category has the id {item.get('category_id')!r}"
            elif not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
                problem = f"'bbox' is {box!r}, not four numbers x, y, width, height"
            elif _is_int(own) and own in ids:
                problem = f"the id {own} is used twice"
            else:
                if _is_int(own):
                    ids.add(own)
                x, y, width, height = map(float, box)
                area: Any = item.get("area")
                found.setdefault(image_id, []).append(
                    RawObject(
                        (x, y, x + width, y + height),
                        names[item["category_id"]],
                        index,
                        what,
                        float(area) if _is_number(area) else None,
                        bool(item.get("iscrowd")),
                    )
                )
                continue
            line = self.places.line("annotations", index)
            self.report.error(self.path, line, f"{what}: {problem}")
            if _is_int(image_id):
                broken.add(image_id)
        return found, broken

    def _error(self, section: str, index: int, message: str, mark: str = "") -> None:
        line = self.places.line(section, index)
        self.report.error(self.path, line, f"{section}[{index}]{mark} {message}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _read_split(config: DataConfig, root: Path, split: str, options: ReadOptions) -> AnnotationSet:
    named = named_annotations(config, split)
    path = root / named if named else find_annotations(root, split)
    return read_coco_with(path, named_images(config, root, split), root, options)


FORMAT = Format(
    "instances_train*.json, train.json, train/_annotations.coco.json or a single COCO file",
    lambda root: any(list_annotations(root, split) for split in SPLITS),
    lambda config, root, split: bool(list_annotations(root, split)),
    _read_split,
)
