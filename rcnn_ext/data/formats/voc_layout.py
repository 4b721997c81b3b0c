"""Finding VOC annotations: by image sets, in folders per split, or all XML files of a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rcnn_ext.data.formats.split_names import SPLITS, mixed_splits, split_folders
from rcnn_ext.data.images import IMAGE_SUFFIXES
from rcnn_ext.files import read_head

_ANNOTATIONS = ("Annotations", "annotations", "xml", "xmls", "labels")
_IMAGES = ("JPEGImages", "images", "Images", "")

# A few files tell the format of a folder.
_MAX_COMPARED = 20


@dataclass(frozen=True)
class VocSource:
    """The XML files of a split, all or some of a folder.

    Attributes:
        annotations: Folder of the XML files.
        images: Folders to look for the pictures in, the likeliest first.
        listing: The image set that names those to read; None takes all XML files.
    """

    annotations: Path
    images: tuple[Path, ...]
    listing: Path | None = None


def voc_folders(root: Path, years: Sequence[int] | None = None) -> list[Path]:
    """Return the folders with ``Annotations`` and images: ``root``, or VOC<year> below it."""
    for parent in (root, root / "VOCdevkit"):
        found = sorted(path for path in parent.glob("VOC*") if (path / "Annotations").is_dir())
        if years is not None:
            found = [path for path in found if path.name in {f"VOC{year}" for year in years}]
        if found:
            return found
    return [root] if (root / "Annotations").is_dir() else []


def voc_image_sets(root: Path, name: str, years: Sequence[int] | None = None) -> list[Path]:
    """Return the lists ``ImageSets/Main/<name>.txt``, at most one per year."""
    lists = [folder / "ImageSets" / "Main" / f"{name}.txt" for folder in voc_folders(root, years)]
    return [path for path in lists if path.is_file()]


def voc_set_name(root: Path, split: str, years: Sequence[int] | None = None) -> str | None:
    """Return the image set of a split where the recipe names none; None if there is none.

    Training is ``train`` where there is a ``val`` to go with it, else ``trainval``; or ``default``,
    which is CVAT's name for all images.
    """
    if split != "train":
        return split if voc_image_sets(root, split, years) else None
    paired = voc_image_sets(root, "val", years)
    order = ("train", "trainval") if paired else ("trainval", "train", "default")
    return next((name for name in order if voc_image_sets(root, name, years)), None)


def find_voc_split(
    root: Path, split: str, years: Sequence[int] | None = None, named: str | None = None
) -> list[VocSource]:
    """Find the annotations of a split.

    By an image set; else in a folder of its own (``train/Annotations``, ``Annotations/train``, or
    ``train`` with XML files beside the pictures). Where nothing says which images are for what, all
    XML files are for training.

    Args:
        root: The folder of the data set.
        split: ``train``, ``val`` or ``test``.
        years: Which of several ``VOC<year>`` folders to read; None takes all.
        named: The image set, or the folder of XML files, that the recipe names; None looks for it.

    Returns:
        Where to read, one entry per year; empty if the data have no such split.
    """
    if named is not None:
        listed = _listed(voc_image_sets(root, named, years))
        return listed or _in_folder(root / named, root)
    name = voc_set_name(root, split, years)
    if name is not None:
        return _listed(voc_image_sets(root, name, years))
    own = _own_folder(root, split)
    if own or split != "train":
        return own
    return all_voc_annotations(root, years) if not _is_divided(root, years) else []


def all_voc_annotations(root: Path, years: Sequence[int] | None = None) -> list[VocSource]:
    """Return all XML files, whatever image sets there are; empty if there are none."""
    folders = voc_folders(root, years)
    if folders:
        return [_source(folder / "Annotations", folder) for folder in folders]
    if years is not None:
        return []
    return _in_folder(root, root)


def looks_like_voc(root: Path) -> bool:
    """Return whether a folder has VOC annotations in any of the layouts."""
    return bool(voc_folders(root)) or any(find_voc_split(root, split) for split in SPLITS)


def describe_search(root: Path, split: str, years: Sequence[int] | None = None) -> str:
    """Return where :func:`find_voc_split` looks, and what is there instead, for messages."""
    lists = sorted({path.stem for path in _all_lists(root, years)})
    there = f"; there are the image sets {', '.join(lists)}" if lists else ""
    folders = [str(path.relative_to(root)) for path in _split_folders_with_data(root)]
    if folders:
        there += f"; the splits {', '.join(folders)} are not merged"
    everything = ", and for training all XML files where nothing divides them"
    return (
        f"looked for ImageSets/Main/{split}.txt, {split}/Annotations, Annotations/{split} and XML "
        f"files beside the pictures in {split}{everything if split == 'train' else ''}{there}"
    )


def _is_divided(root: Path, years: Sequence[int] | None) -> bool:
    """Return whether image sets or folders divide the images, so that all are not for training."""
    return bool(_all_lists(root, years)) or bool(_split_folders_with_data(root))


def _split_folders_with_data(root: Path) -> list[Path]:
    """Return the folders named after splits that have XML files or pictures."""
    parents = [root / name for name in (*_ANNOTATIONS, *_IMAGES)]
    folders = [parent / name for parent in parents for name in mixed_splits(parent)]
    suffixes = (".xml", *IMAGE_SUFFIXES)
    return [
        folder
        for folder in folders
        if any(path.suffix.lower() in suffixes for path in folder.iterdir())
        or _in_folder(folder, root)
    ]


def _all_lists(root: Path, years: Sequence[int] | None) -> list[Path]:
    folders = voc_folders(root, years)
    return [path for folder in folders for path in (folder / "ImageSets" / "Main").glob("*.txt")]


def _listed(lists: Sequence[Path]) -> list[VocSource]:
    folders = [path.parents[2] for path in lists]
    return [
        _source(folder / "Annotations", folder, path)
        for folder, path in zip(folders, lists, strict=True)
    ]


def _own_folder(root: Path, split: str) -> list[VocSource]:
    for folder in split_folders(root, split):
        found = _in_folder(folder, folder)
        if found:
            return found
    for name in _ANNOTATIONS:
        for folder in split_folders(root / name, split):
            found = _in_folder(folder, root)
            if found:
                return found
    return []


def _in_folder(folder: Path, base: Path) -> list[VocSource]:
    """Return the XML files in one of the usual folders in ``folder``, or in itself."""
    for name in (*_ANNOTATIONS, "images", ""):
        if _has_voc_xml(folder / name):
            return [_source(folder / name, base)]
    return []


def _source(annotations: Path, base: Path, listing: Path | None = None) -> VocSource:
    """Return a source whose pictures are near, perhaps in a folder of the annotations' name."""
    parents = (base, annotations.parent)
    places = [base / name / annotations.name for name in _IMAGES]
    places += [parent / name for parent in parents for name in _IMAGES]
    places.append(annotations)
    images = tuple(dict.fromkeys(place for place in places if place.is_dir()))
    return VocSource(annotations, images or (base / _IMAGES[0],), listing)


def xml_files(folder: Path) -> list[Path]:
    """Return the XML files of a folder, sorted; empty if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".xml")


def _has_voc_xml(folder: Path) -> bool:
    """Return whether one of the first XML files in a folder is an annotation of VOC's kind."""
    return any(map(_begins_like_voc, xml_files(folder)[:_MAX_COMPARED]))


def _begins_like_voc(path: Path) -> bool:
    # UTF-16 has a zero beside each of these letters.
    head = read_head(path, 4096).replace(b"\0", b"")
    return re.search(rb"<annotation[\s>]", head) is not None
