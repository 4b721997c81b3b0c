"""Finding the images, label files and class names of YOLO data.

A YAML file of any name may say where they are (https://docs.ultralytics.com/datasets/detect/);
without one they are in folders and lists with the usual names.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from rcnn_ext.data.formats.file_names import file_parts
from rcnn_ext.data.formats.label_folders import first_line, folder_texts
from rcnn_ext.data.formats.outside import is_inside
from rcnn_ext.data.formats.picture_names import AmbiguousNameError, PictureFinder
from rcnn_ext.data.formats.safe_yaml import load_yaml
from rcnn_ext.data.formats.split_names import SPLIT_NAMES, SPLITS, mixed_splits, split_folders
from rcnn_ext.data.images import IMAGE_SUFFIXES, is_picture
from rcnn_ext.data.text_files import read_lines
from rcnn_ext.errors import UserError

# What is called so is meant, even where it is broken.
_USUAL_DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_NAME_FILES = ("classes.txt", "obj.names", "labels.txt")
_SPLIT_KEYS = tuple(name for split in SPLITS for name in SPLIT_NAMES[split])
_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?")
_LABELS_OF = {"images": "labels", "Images": "Labels", "JPEGImages": "labels"}
_ANY_KEY = re.compile(rf"\b({'|'.join((*_SPLIT_KEYS, 'names'))})\b['\"]?\s*:")


def find_description(root: Path, named: str | None = None) -> Path | None:
    """Return the YAML file that says what is where, whatever it is called.

    Args:
        root: The folder of the data set.
        named: The file that the recipe names, relative to ``root``; None looks for one with
            ``names``, or with ``train`` or ``val`` that are paths.

    Raises:
        UserError: It cannot be read, or several files say different things.
    """
    if named is not None:
        if not (root / named).is_file():
            raise UserError(f"{root / named} (data.yolo.description) does not exist")
        return root / named
    found: list[tuple[Path, dict[str, Any]]] = []
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        hidden = path.name.startswith(".")
        if hidden or path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
            continue
        content = _relevant_content(path)
        if content is not None:
            found.append((path, content))
    if any(content != found[0][1] for _, content in found[1:]):
        names = ", ".join(path.name for path, _ in found)
        raise UserError(
            f"{root} has several YAML files that name splits or classes: {names}; choose one with "
            "data.yolo.description=NAME"
        )
    return found[0][0] if found else None


def _relevant_content(path: Path) -> dict[str, Any] | None:
    """Return what a file says of splits and classes; None if it is about something else.

    Its encoding does not matter for that: its keys are plain.
    """
    usual = path.name.lower() in _USUAL_DESCRIPTIONS
    try:
        content_bytes = path.read_bytes().replace(b"\0", b"")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not usual and not _ANY_KEY.search(content_bytes.decode("utf-8", errors="replace")):
        return None
    content = read_description(path, lenient=True)
    relevant = {key: content[key] for key in ("path", "names", *_SPLIT_KEYS) if content.get(key)}
    names = isinstance(relevant.get("names"), (list, dict))
    paths = any(
        _is_paths(relevant.get(name)) for split in ("train", "val") for name in SPLIT_NAMES[split]
    )
    return relevant if usual or names or paths else None


def _is_paths(value: object) -> bool:
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(item, str) for item in items)


def read_description(
    path: Path, encoding: str | None = None, *, lenient: bool = False
) -> dict[str, Any]:
    """Return the content of a YAML file; see :func:`load_yaml`.

    Raises:
        UserError: It cannot be read, or has no keys.
    """
    content = load_yaml(path, encoding, lenient=lenient)
    if not isinstance(content, dict):
        raise UserError(f"{path} has no keys")
    return content


def describe(
    root: Path, named: str | None = None, encoding: str | None = None, *, lenient: bool = False
) -> dict[str, Any]:
    """Return the content of the YAML file that says what is where; empty where there is none.

    Args:
        root: The folder of the data set.
        named: See :func:`find_description`.
        encoding: See :func:`load_yaml`.
        lenient: See :func:`load_yaml`.

    Raises:
        UserError: It cannot be read, or several files say different things.
    """
    path = find_description(root, named)
    return {} if path is None else read_description(path, encoding, lenient=lenient)


def find_yolo_split(
    root: Path, split: str, description: str | None = None, encoding: str | None = None
) -> list[Path]:
    """Return the image folders, or lists of images, of a split.

    They are those that a YAML file names, or the usual ones: ``images/<split>``,
    ``<split>/images``, the list ``<split>.txt``, or ``<split>`` with label files beside the
    pictures. Where nothing says which images are for what, all of ``images``, or of ``root``, are
    for training.

    Args:
        root: The folder of the data set.
        split: ``train``, ``val`` or ``test``.
        description: The YAML file, relative to ``root``; None looks for it.
        encoding: See :func:`load_yaml`.

    Raises:
        UserError: A YAML file cannot be read, or there are several.
    """
    return _find_split(root, split, describe(root, description, encoding))


def _find_split(root: Path, split: str, content: dict[str, Any]) -> list[Path]:
    found = _named_split(root, split, content) or _usual_split(root, split)
    if found or split != "train":
        return found
    if any(_find_split(root, other, content) for other in ("val", "test")):
        return []
    images = root / "images"
    if mixed_splits(root) or mixed_splits(images):
        return []
    if images.is_dir() and ((root / "labels").is_dir() or _has_labels_beside(images)):
        return [images]
    return [root] if _has_labels_beside(root) else []


def looks_like_yolo(root: Path) -> bool:
    """Return whether a YAML file names splits, or pictures in the usual places have label files.

    Raises:
        UserError: A YAML file cannot be read, or there are several.
    """
    content = describe(root, lenient=True)
    if any(_named_split(root, split, content) for split in SPLITS):
        return True
    found = (source for split in SPLITS for source in _find_split(root, split, content))
    return any(map(_has_labels, found))


def _has_labels(source: Path) -> bool:
    if source.is_file():
        return any(map(is_picture, images_of(source)[:1]))
    labels = _in_labels(source / "any.txt").parent
    return (labels != source and labels.is_dir()) or _has_labels_beside(source)


def describe_search(root: Path, split: str) -> str:
    """Return where :func:`find_yolo_split` looks, for messages."""
    looked = (
        f"a YAML file with {split}:, images/{split}, {split}/images, {split}.txt and pictures with "
        f"text files in {split}"
    )
    others = [
        f"{folder.name}/{name}" if folder != root else name
        for folder in (root, root / "images")
        for name in mixed_splits(folder)
    ]
    mixed = f"; the splits {', '.join(others)} are not merged" if others else ""
    return f"looked for {looked}{mixed}"


def _named_split(root: Path, split: str, description: dict[str, Any]) -> list[Path]:
    base = root / str(description.get("path") or "")
    if not base.is_dir():
        # Such files name absolute paths of the machine they were made on.
        base = root
    named = next((description[s] for s in SPLIT_NAMES[split] if description.get(s)), None)
    if named is None:
        return []
    names = named if isinstance(named, list) else [named]
    found = [_existing(base, root, str(name)) for name in names]
    if split == "test" and not any(path.exists() for path in found):
        # Roboflow names one in every export, also of data that have none.
        return []
    return found


def _existing(base: Path, root: Path, name: str) -> Path:
    """Return the folder or list of a name, as seen from one of two folders.

    Some tools write a path as seen from a folder below, or an absolute one of their machine, of
    which as much counts as is there.
    """
    parts = file_parts(name)
    ends = (parts[start:] for start in range(len(parts)) if parts[start] != "..")
    places = (base / name, root / name, *(root.joinpath(*end) for end in ends))
    found = [place for place in places if place.exists()]
    # What lies beside the data folder may belong to other data.
    found.sort(key=lambda place: not is_inside(place, [root]))
    return found[0] if found else base / name


def _usual_split(root: Path, split: str) -> list[Path]:
    folders = split_folders(root / "images", split)
    if folders:
        return folders
    for folder in split_folders(root, split):
        if (folder / "images").is_dir():
            return [folder / "images"]
        if _has_labels_beside(folder):
            return [folder]
    lists = (root / f"{name}.txt" for name in SPLIT_NAMES[split])
    return next(([path] for path in lists if path.is_file()), [])


def _has_labels_beside(folder: Path) -> bool:
    """Return whether pictures in a folder have text files beside them."""
    if not folder.is_dir():
        return False
    names = set(os.listdir(folder))
    stems = {Path(name).stem for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES}
    return any(f"{stem}.txt" in names for stem in stems)


def yolo_names(
    root: Path, description: str | None = None, encoding: str | None = None
) -> list[str] | None:
    """Return the names of the classes in a YAML file, ``classes.txt`` or ``obj.names``.

    Args:
        root: The folder of the data set.
        description: The YAML file, relative to ``root``; None looks for it.
        encoding: See :func:`rcnn_ext.data.text_files.read_text`.

    Raises:
        UserError: A file is there but wrong.
    """
    path = find_description(root, description)
    names = read_description(path, encoding).get("names") if path is not None else None
    if path is not None and isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(f"{root}: the names in {path.name} must be numbered 0, 1, 2, ...")
        names = [names[index] for index in range(len(names))]
    if isinstance(names, list):
        for index, name in enumerate(names):
            if isinstance(name, (list, dict)):
                raise UserError(f"{path}: the name of the class {index} is no text")
        return [str(name) for name in names]
    inner = [folder for split in SPLITS for folder in split_folders(root / "labels", split)]
    for folder in (root, root / "labels", root / "images", *inner):
        for name in _NAME_FILES:
            if (folder / name).is_file():
                lines = read_lines(folder / name, encoding)
                return [line.strip() for line in lines if line.strip()]
    return None


def images_of(source: Path, encoding: str | None = None) -> list[Path]:
    """Return the pictures in a folder and those below it, or those that a list names.

    Raises:
        UserError: It cannot be read, or a name in it fits several pictures.
    """
    if source.is_dir():
        return sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    # Darknet's lists may start above the folder of the list: data/obj_train_data/1.jpg.
    finder = PictureFinder([source.parent])
    found = []
    for line, name in enumerate(read_lines(source, encoding), start=1):
        if not name.strip():
            continue
        try:
            found.append(finder.find(name) or finder.expected(name))
        except AmbiguousNameError as error:
            raise UserError(f"{source}:{line}: {error}") from error
    return found


def label_files(images: list[Path]) -> tuple[list[Path], list[Path]]:
    """Return the two places of each picture's text file: in ``labels``, and beside it.

    The first has ``labels`` for the last ``images`` in the picture's path.
    """
    return [_in_labels(path) for path in images], [path.with_suffix(".txt") for path in images]


def has_label_files(labels: list[Path]) -> bool:
    """Return whether the folders of label files have any, whatever their names."""
    folders = {label.parent for label in labels}
    found = (path for folder in folders for path in folder_texts(folder))
    return any(path.name not in _NAME_FILES for path in found)


def is_label_file(path: Path) -> bool:
    """Return whether a text file is one of labels: its first line begins with five numbers."""
    words = first_line(path).split()[:5]
    return len(words) == 5 and all(_NUMBER.fullmatch(word) for word in words)


def _in_labels(image: Path) -> Path:
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] in _LABELS_OF:
            parts[index] = _LABELS_OF[parts[index]]
            break
    return Path(*parts).with_suffix(".txt")
