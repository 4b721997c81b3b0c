"""Documents of annotation tools with what a test puts into them."""

from __future__ import annotations

from rcnn_ext.data import DataConfig, open_split
from rcnn_ext.data.problems import Report
from tests.helpers import layouts
from tests.helpers import platform_layouts as platforms
from tests.helpers import tool_layouts as tools

BOX = list(layouts.BOX)
TURNED = [[20, 4], [30, 10], [20, 16], [10, 10]]


def read(root, **options):
    """Return what is read of a folder, and its problems, errors left out."""
    report = Report()
    return open_split(DataConfig(**options), root, "train", report=report), report.problems


def labelme(root, *shapes, image="p0.png", **more):
    layouts.pictures(root, [0])
    document = {**tools.labelme_file(0, shapes, image), **more}
    layouts.write_json(root / "p0.json", document)
    return root


def label_studio(root, *results, image="/data/upload/1/0a1b2c3d-p0.png", **more):
    layouts.pictures(root / "images", [0])
    task = {**platforms.label_studio_task(0, image, results), **more}
    layouts.write_json(root / "export.json", [task])
    return root


def cvat(root, shapes):
    layouts.pictures(root / "images", [0])
    (root / "annotations.xml").write_text(
        "<annotations>\n<version>1.1</version>\n"
        f'<image id="0" name="p0.png" width="40" height="20">\n{shapes}\n</image></annotations>'
    )
    return root


def via(root, *regions, **more):
    layouts.pictures(root, [0])
    image = {**tools.via_image(0), "regions": list(regions), **more}
    layouts.write_json(root / "via.json", {"p0.png200": image})
    return root


def region(name, attributes=None, **shape):
    return {
        "shape_attributes": {"name": name, **shape},
        "region_attributes": {"type": "cat"} if attributes is None else attributes,
    }
