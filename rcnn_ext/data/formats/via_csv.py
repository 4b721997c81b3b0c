"""CSV files of the VGG Image Annotator, version 2: a region per row, with JSON in its cells.

https://www.robots.ox.ac.uk/~vgg/software/via/
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import RawObject, ReadOptions, SetBuilder
from rcnn_ext.data.formats.csv_rows import Table, read_table
from rcnn_ext.data.formats.csv_tables import has_header, list_tables, table_of_split
from rcnn_ext.data.formats.format import Format, named_images
from rcnn_ext.data.formats.listed_objects import ListedImage, add_listed
from rcnn_ext.data.formats.picture_names import PictureFinder, image_folders
from rcnn_ext.data.formats.split_names import SPLIT_NAMES, SPLITS
from rcnn_ext.data.formats.via_regions import choose_attribute, class_of, region_box
from rcnn_ext.data.problems import Report
from rcnn_ext.errors import UserError

_accepts = has_header("filename", "region_shape_attributes", "region_attributes")


def _read_split(config: DataConfig, root: Path, split: str, options: ReadOptions) -> AnnotationSet:
    path, _ = table_of_split(config, root, split, _accepts)
    images = named_images(config, root, split)
    builder = SetBuilder(path, options)
    table = read_table(path, builder.report, config.csv.delimiter, options.encoding)
    columns = [
        table.need(name) for name in ("filename", "region_shape_attributes", "region_attributes")
    ]
    rows, counts = _rows_by_image(table, columns, builder.report)
    if not rows:
        raise UserError(f"{path} lists no images")
    attribute = choose_attribute(path, counts)
    shapes: Counter[str] = Counter()

    def parse(row: tuple[Any, Any], size: tuple[int, int], line: int) -> list[RawObject]:
        shape, attributes = row
        if not shape:
            return []
        found = region_box(shape)
        if isinstance(found, str):
            raise ValueError(found)
        if found is None:
            shapes[shape["name"]] += 1
            return []
        box, outline, made = found
        name = class_of(attributes, attribute)
        if name is None:
            raise ValueError(f"the region has no {attribute or 'class'}")
        return [RawObject(box, name, line, outline=outline, segmentation=made)]

    folders = [images] if images is not None else image_folders(path, SPLIT_NAMES[split])
    add_listed(builder, path, PictureFinder(folders), rows, parse, repeats_break=False)
    for shape, count in shapes.items():
        builder.report.warning(path, None, f"{count} objects of shape {shape}, which have no box")
    return builder.finish()


def _rows_by_image(
    table: Table, columns: list[int], report: Report
) -> tuple[dict[str, ListedImage[tuple[Any, Any]]], Counter[str]]:
    """Return the shape and the attributes of each region, and how often attributes occur."""
    images: dict[str, ListedImage[tuple[Any, Any]]] = {}
    counts: Counter[str] = Counter()
    for line, values, broken in table.rows:
        if len(values) != len(table.header):
            report.error(
                table.path,
                line,
                f"{len(values)} values, but the header has {len(table.header)} columns",
            )
            broken = True
        if not values[columns[0]]:
            report.error(table.path, line, "no image name")
            continue
        image = images.setdefault(values[columns[0]], ListedImage())
        cells: tuple[Any, Any] = ({}, {})
        if not broken:
            try:
                cells = _json(values[columns[1]]), _json(values[columns[2]])
            except ValueError as error:
                report.error(table.path, line, str(error))
                broken = True
        if isinstance(cells[1], dict):
            counts.update(list(cells[1]))
        image.rows.append((line, cells))
        image.broken |= broken
    return images, counts


def _json(text: str) -> Any:
    try:
        return json.loads(text) if text else {}
    except (ValueError, RecursionError):
        raise ValueError(f"{text[:80]!r} is not JSON") from None


FORMAT = Format(
    "a CSV file with region_shape_attributes (VIA)",
    lambda root: any(list_tables(root, split, _accepts) for split in SPLITS),
    lambda config, root, split: bool(list_tables(root, split, _accepts)),
    _read_split,
    _accepts,
)
