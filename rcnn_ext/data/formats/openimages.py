"""CSV files of Open Images: a box per row, in parts of the image's sides, of classes by code.

https://storage.googleapis.com/openimages/web/download_v7.html
"""

from __future__ import annotations

from pathlib import Path

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import RawObject, ReadOptions, SetBuilder
from rcnn_ext.data.formats.csv_layout import csv_files
from rcnn_ext.data.formats.csv_rows import Table, first_values, read_table
from rcnn_ext.data.formats.csv_tables import has_header, list_tables, table_of_split
from rcnn_ext.data.formats.csv_values import number
from rcnn_ext.data.formats.format import Format, named_annotations, named_images
from rcnn_ext.data.formats.listed_objects import ListedImage, add_listed
from rcnn_ext.data.formats.picture_names import PictureFinder
from rcnn_ext.data.formats.split_names import SPLIT_NAMES, SPLITS, split_of
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError

_BOX = ("XMin", "YMin", "XMax", "YMax")
_accepts = has_header("imageid", "labelname", "xmin", "xmax", "ymin", "ymax")


def _read_split(config: DataConfig, root: Path, split: str, options: ReadOptions) -> AnnotationSet:
    column_splits = _splits_in_column(root) if named_annotations(config, split) is None else {}
    if split in column_splits:
        path = column_splits[split]
    else:
        path, _ = table_of_split(config, root, split, _accepts)
    builder = SetBuilder(path, options)
    report = builder.report
    table = read_table(path, report, config.csv.delimiter, options.encoding)
    rows = _rows_by_image(table, split if split in column_splits else None, report)
    if not rows:
        raise UserError(f"{path} lists no images for {split}")
    images = named_images(config, root, split)
    finder = PictureFinder([images] if images is not None else _folders(root, path, split))
    missing = [name for name in rows if finder.find(name) is None]
    if missing and len(missing) < len(rows):
        # The file lists millions of images, of which people fetch some.
        report.warning(
            path,
            rows[missing[0]].rows[0][0],
            f"{len(missing)} of {len(rows)} images are not in "
            f"{', '.join(map(str, finder.folders))}, the first is {missing[0]}; left out",
        )
        rows = {name: image for name, image in rows.items() if name not in set(missing)}
    reader = _RowReader(table, _descriptions(root, path, options.encoding))
    add_listed(builder, path, finder, rows, reader.parse, needs_size=True, repeats_break=False)
    if not reader.descriptions:
        report.note(
            path, None, "classes are called by their codes: no class-descriptions*.csv was found"
        )
    return builder.finish()


def _rows_by_image(
    table: Table, split: str | None, report: Report
) -> dict[str, ListedImage[list[str]]]:
    name, subset = table.need("ImageID"), table.column("subset", "split")
    images: dict[str, ListedImage[list[str]]] = {}
    for line, values, broken in table.rows:
        if len(values) != len(table.header):
            report.error(
                table.path,
                line,
                f"{len(values)} values, but the header has {len(table.header)} columns",
            )
            broken = True
        if name >= len(values) or not values[name]:
            report.error(table.path, line, "no ImageID")
            continue
        if split is not None and subset is not None and not broken:
            own = split_of(values[subset])
            if own is None:
                report.error(table.path, line, f"{values[subset]!r} is no split")
            if own != split:
                continue
        image = images.setdefault(values[name], ListedImage())
        image.rows.append((line, values))
        image.broken |= broken
    return images


class _RowReader:
    """Read the rows of a file."""

    def __init__(self, table: Table, descriptions: dict[str, str]) -> None:
        self.descriptions = descriptions
        self.label = table.need("LabelName")
        self.box = [table.need(name) for name in _BOX]
        self.group = table.column("isgroupof")
        self.truncated = table.column("istruncated")

    def parse(self, values: list[str], size: tuple[int, int], line: int) -> list[RawObject]:
        """Return the object of a row; see :func:`add_listed`."""
        code, texts = values[self.label], [values[index] for index in self.box]
        if not code and not any(texts):
            return []
        if not code:
            raise ValueError("no value for LabelName")
        x1, y1, x2, y2 = (number(n, text) for n, text in zip(_BOX, texts, strict=True))
        largest = max(x1, y1, x2, y2)
        if largest > 2:
            raise ValueError(
                f"{largest:g} is not a part of the image's side; coordinates are from 0 to 1"
            )
        width, height = size
        return [
            RawObject(
                (x1 * width, y1 * height, x2 * width, y2 * height),
                self.descriptions.get(code, code),
                line,
                # -1 stands for unknown.
                crowd=self.group is not None and values[self.group] == "1",
                truncated=self.truncated is not None and values[self.truncated] == "1",
            )
        ]


def _descriptions(root: Path, path: Path, encoding: str | None) -> dict[str, str]:
    """Return the names of the classes by their codes; empty where no file has them."""
    places = (path.parent, path.parent.parent / "metadata", path.parent / "metadata", root)
    for folder in dict.fromkeys((*places, root / "metadata", root / "annotations")):
        for file in csv_files(folder):
            rows = first_values(file, 3, encoding)
            if rows and all(len(row) == 2 and row[0].startswith("/") for row in rows[1:] or rows):
                table = read_table(file, Report(), encoding=encoding)
                both = (table.header, *(row.values for row in table.rows))
                return {row[0]: row[1] for row in both if len(row) == 2 and row[1]}
    return {}


def _folders(root: Path, path: Path, split: str) -> list[Path]:
    """Return where the pictures of a split may be, the likeliest folder first."""
    places = []
    for word in SPLIT_NAMES[split]:
        places += [f"{word}/data", f"{word}/images", word, f"images/{word}", f"data/{word}"]
    found = [root / place for place in (*places, "images", "data", "")]
    return [folder for folder in (*found, path.parent / "images", path.parent) if folder.is_dir()]


def _splits_in_column(root: Path) -> dict[str, Path]:
    """Return the only file for each split that its column ``Subset`` names, if it has one."""
    files = [path for split in SPLITS for path in list_tables(root, split, _accepts)]
    if len(files) != 1:
        return {}
    header = {value.lower() for value in first_values(files[0], 1)[0]}
    if not header & {"subset", "split"}:
        return {}
    table = read_table(files[0], Report())
    column = table.column("subset", "split") or 0
    named = {split_of(row.values[column]) for row in table.rows if column < len(row.values)}
    return {split: files[0] for split in named if split is not None}


def _has_split(config: DataConfig, root: Path, split: str) -> bool:
    columns = _splits_in_column(root)
    return split in columns if columns else bool(list_tables(root, split, _accepts))


FORMAT = Format(
    "CSV files with ImageID, LabelName, XMin, XMax, YMin and YMax (Open Images)",
    lambda root: any(list_tables(root, split, _accepts) for split in SPLITS),
    _has_split,
    _read_split,
    _accepts,
)
