"""The formats of annotation tools whose images are described by documents, JSON or XML.

Each such format turns a document into :class:`ImageEntry` objects; here documents are found and
given to splits, images are looked for, and all that is left out is named and counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import ReadOptions, SetBuilder
from rcnn_ext.data.formats.documents import Document, ImageEntry, Scan, load_json
from rcnn_ext.data.formats.folder_tree import walk
from rcnn_ext.data.formats.format import Format, named_annotations, named_images
from rcnn_ext.data.formats.image_finder import ImageFinder
from rcnn_ext.data.formats.split_names import splits_in_name
from rcnn_ext.data.images import IMAGE_SUFFIXES, is_picture, numeric_ids
from rcnn_ext.errors import UserError

# In a folder with more files each is about one image, and a few of them tell the format.
_MAX_COMPARED = 20

# Files that tools write beside annotations and that describe no image.
_AUXILIARY = {
    "meta.json",
    "notes.json",
    "package.json",
    "key_id_map.json",
    "obj_class_to_machine_color.json",
    "dataset_infos.json",
    "dataset_info.json",
    "state.json",
}


@dataclass(frozen=True)
class DocumentFormat:
    """A format whose images are described by documents.

    Attributes:
        title: What messages call it.
        looked_for: What a folder of this format has, for messages.
        suffixes: Suffixes of the documents, in lower case.
        recognize: Whether a file is a document of this format.
        read: Yields the images of a document.
        one_per_image: Whether each image has a document of its own, named like it.
        split_up: Divides a document that says itself which image is in which split; None: none
            does.
    """

    title: str
    looked_for: str
    suffixes: tuple[str, ...]
    recognize: Callable[[Path], bool]
    read: Callable[[Document, Scan], Iterable[ImageEntry]]
    one_per_image: bool = False
    split_up: Callable[[Document], list[Document]] | None = None

    def find(self, root: Path) -> list[Document]:
        """Return all documents below a folder, in the order of their paths."""
        found: list[Document] = []
        for folder, files in walk(root):
            names = [name for name in files if name.lower().endswith(self.suffixes)]
            compared = names[:_MAX_COMPARED]
            own = [name for name in compared if self.recognize(folder / name)]
            if not own:
                continue
            many = self.one_per_image or len(names) > _MAX_COMPARED
            for name in names if many else own:
                if name in _AUXILIARY:
                    continue
                path = folder / name
                words = folder.relative_to(root).parts + (() if many else (path.stem,))
                document = Document(path, _split_of(words))
                found += self.split_up(document) if self.split_up is not None else [document]
        return found

    def split(self, root: Path, split: str) -> tuple[list[Document], list[Document]]:
        """Return the documents of a split, and those of no split where others have one."""
        found = self.find(root)
        own = [document for document in found if document.split == split]
        without = [document for document in found if document.split is None]
        divided = len(without) < len(found)
        if split == "train" and not divided:
            return without, []
        return own, without

    def as_format(self) -> Format:
        """Return the entry of the table of formats."""
        return Format(
            self.looked_for,
            lambda root: bool(self.find(root)),
            lambda config, root, split: bool(self.split(root, split)[0]),
            self._read_split,
            lambda path: path.suffix.lower() in self.suffixes and self.recognize(path),
        )

    def _read_split(
        self, config: DataConfig, root: Path, split: str, options: ReadOptions
    ) -> AnnotationSet:
        named = named_annotations(config, split)
        unused: list[Document] = []
        if named is None:
            documents, unused = self.split(root, split)
            looked_in = root
        else:
            looked_in = root / named
            documents = [Document(looked_in)] if looked_in.is_file() else self.find(looked_in)
        if not documents:
            raise UserError(
                f"no {self.title} annotations for {split} in {looked_in}: looked for "
                f"{self.looked_for}; name a file or folder with data.{split}_annotations=PATH"
            )
        folder = named_images(config, root, split)
        return read_documents(self, documents, unused, config, root, folder, options, named is None)


def read_documents(
    kind: DocumentFormat,
    documents: Sequence[Document],
    unused: Sequence[Document],
    config: DataConfig,
    root: Path,
    folder: Path | None,
    options: ReadOptions,
    everything: bool,
) -> AnnotationSet:
    """Read the images of some documents.

    Args:
        kind: The format of the documents.
        documents: What to read, at least one.
        unused: Documents that belong to no split.
        config: The data section of the recipe.
        root: The data folder.
        folder: Folder of the images; None looks for them below ``root``.
        options: The options that all formats share.
        everything: Whether to name what is below ``root`` and not in the documents.

    Raises:
        UserError: Documents or images are missing or wrong; what and where is named.
    """
    paths = list(dict.fromkeys(document.path for document in documents))
    source = paths[0] if len(paths) == 1 else root
    scan_of_lines: list[Scan] = []
    builder = SetBuilder(source, options, lambda key: scan_of_lines[0].locate(key))
    scan = Scan(root, config, builder.report, options.lines)
    scan_of_lines.append(scan)
    for document in unused:
        scan.leave_out("annotation files of no split, where others have one", document.path)
    finder = ImageFinder(root, folder)
    entries: list[ImageEntry] = []
    for document in documents:
        entries += _read_one(kind, document, scan, finder)
    _declare(builder, scan, entries)
    used = _add_all(builder, scan, entries, finder)
    if everything:
        _name_unused_images(scan, documents, finder, used)
        _name_unread_documents(kind, scan)
    scan.warn_of_left_out()
    return builder.finish()


def _read_one(
    kind: DocumentFormat, document: Document, scan: Scan, finder: ImageFinder
) -> list[ImageEntry]:
    path = document.path
    names = [path.stem, *(path.stem + suffix for suffix in IMAGE_SUFFIXES)]
    try:
        if kind.one_per_image and not kind.recognize(path):
            if finder.find(names, path.parent) is None:
                scan.leave_out(f"files that are not {kind.title}'s", path)
                return []
            load_json(document)
            raise UserError(f"{path} is not a {kind.title} file: looked for {kind.looked_for}")
        return list(kind.read(document, scan))
    except UserError as error:
        scan.report.error(path, None, str(error).removeprefix(f"{path} "))
        return [ImageEntry(names, None, [], path, broken=True)]


def _declare(builder: SetBuilder, scan: Scan, entries: Sequence[ImageEntry]) -> None:
    if not scan.classes:
        return
    known = set(scan.classes)
    others: dict[str, None] = {}
    for entry in entries:
        for item in entry.objects:
            if item.name not in known:
                others[item.name] = None
    for name in sorted(others):
        scan.report.warning(
            builder.source, None, f"objects of the class {name!r}, which is not declared, are kept"
        )
    names = [*scan.classes, *sorted(others)]
    builder.declare([(name, index) for index, name in enumerate(names, start=1)])


def _add_all(
    builder: SetBuilder, scan: Scan, entries: Sequence[ImageEntry], finder: ImageFinder
) -> dict[Path, ImageEntry]:
    used: dict[Path, ImageEntry] = {}
    found = [finder.find(entry.names, entry.document.parent) for entry in entries]
    stems = [
        path.stem if path is not None else Path(entry.names[0]).stem
        for path, entry in zip(found, entries, strict=True)
    ]
    for image_id, path, entry in zip(numeric_ids(stems), found, entries, strict=True):
        origin = (entry.document, entry.line)
        if entry.left_out:
            scan.leave_out(entry.left_out, *origin)
            if path is not None:
                used.setdefault(path, entry)
            continue
        if path is None and entry.broken:
            builder.skip()  # What is wrong was reported, and perhaps no image is named.
            continue
        if path is None:
            message = f"the image {entry.names[0]} is nowhere in {finder.base}{entry.hint}"
            scan.report.error(*origin, message)
            builder.skip()
            continue
        first = used.setdefault(path, entry)
        if first is not entry:
            where = str(first.document) + (f":{first.line}" if first.line is not None else "")
            scan.report.error(*origin, f"{path} is described twice, first by {where}")
            builder.skip()
            continue
        size, objects = entry.size, entry.objects
        if entry.resolve is not None:
            try:
                size = builder.options.reader.image_size(path)
            except UserError as error:
                scan.report.error(*origin, str(error))
                builder.skip()
                continue
            objects = entry.resolve(size)
        builder.add(
            image_id, path, size, objects, origin, broken=entry.broken, verify_size=size is not None
        )
    return used


def _name_unused_images(
    scan: Scan,
    documents: Sequence[Document],
    finder: ImageFinder,
    used: dict[Path, ImageEntry],
) -> None:
    """Name images that no annotation speaks of: of the split, where there are several."""
    split = documents[0].split
    for path in finder.all_files():
        if path in used or not is_picture(path):
            continue
        if split is not None:
            base = finder.base
            if _split_of(path.parent.relative_to(base).parts) != split:
                continue
        scan.leave_out("images that have no annotations", path)


def _name_unread_documents(kind: DocumentFormat, scan: Scan) -> None:
    known = {document.path for document in kind.find(scan.root)}
    for folder, files in walk(scan.root):
        for name in files:
            path = folder / name
            ours = name.lower().endswith(kind.suffixes) and name.lower() not in _AUXILIARY
            if ours and path not in known:
                scan.leave_out(f"files that are not {kind.title}'s", path)


def _split_of(names: Sequence[str]) -> str | None:
    """Return the split that the last of some names speaks of."""
    for name in reversed(names):
        splits = splits_in_name(os.path.splitext(name)[0])
        if len(splits) == 1:
            return splits.pop()
    return None
