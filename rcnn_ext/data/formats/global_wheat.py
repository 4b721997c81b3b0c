"""CSV files of the Global Wheat Head data sets of 2020 (Kaggle) and 2021.

2020 has a box per row in a column ``bbox`` and names without suffix; 2021 has a row per image with
all its boxes in ``BoxesString``. http://www.global-wheat.com/
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rcnn_ext.config.data import CsvConfig, DataConfig
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.builder import ReadOptions
from rcnn_ext.data.formats.csv_boxes import read_csv_boxes_with
from rcnn_ext.data.formats.csv_rows import first_values
from rcnn_ext.data.formats.csv_tables import has_header, list_tables, table_of_split
from rcnn_ext.data.formats.format import Format, named_images
from rcnn_ext.data.formats.split_names import SPLITS

_CLASS = "wheat_head"

_is_2020 = has_header("image_id", "width", "height", "bbox", "source")
_is_2021 = has_header("image_name", "boxesstring")


def _accepts(path: Path) -> bool:
    first = first_values(path, 1)
    named = {"class", "label", "category"} & {value.lower() for value in first[0]} if first else ()
    return not named and (_is_2020(path) or _is_2021(path))


def _read_split(config: DataConfig, root: Path, split: str, options: ReadOptions) -> AnnotationSet:
    path, others = table_of_split(config, root, split, _accepts)
    given: CsvConfig = config.csv
    if _is_2021(path):
        header = first_values(path, 1)[0]
        lower = [value.lower() for value in header]
        names = {"image": "image_name", "box": "boxesstring"}
        columns = {role: header[lower.index(name)] for role, name in names.items()}
        given = dataclasses.replace(given, columns=columns, box_format="xyxy")
    names_of = options.classes
    one = given.one_class or (names_of[0] if names_of and len(names_of) == 1 else _CLASS)
    given = dataclasses.replace(given, one_class=one)
    return read_csv_boxes_with(
        path, named_images(config, root, split), given, options, split, others
    )


FORMAT = Format(
    "a CSV file with image_id, bbox and source, or image_name and BoxesString (Global Wheat)",
    lambda root: any(list_tables(root, split, _accepts) for split in SPLITS),
    lambda config, root, split: bool(list_tables(root, split, _accepts)),
    _read_split,
    _accepts,
)
