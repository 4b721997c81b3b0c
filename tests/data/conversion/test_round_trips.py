"""What is written in a format reads back as it was, but for what the conversion says it lost."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.data import DataConfig, convert, has_split, open_split
from rcnn_ext.data.images import load_image
from tests.helpers import layouts, text_layouts, tool_layouts
from tests.helpers.made_data import as_pennfudan
from tests.helpers.pictures import save_turned, upright_picture
from tests.helpers.real_data import REAL, needs_real_data

pytest.importorskip("lxml", reason="lxml comes with the extra train")
pytest.importorskip("yaml", reason="PyYAML comes with the extra train")

TARGETS = ("coco", "voc", "yolo", "csv")
TOOLS = layouts.LAYOUTS | tool_layouts.TOOLS | text_layouts.TOOLS
NAMES = ("a, b", 'the "quoted"', "two\nlines", "猫", "x: [y]", "07", "<&>")


def read(root, split="train", **config):
    return open_split(DataConfig(masks=True, **config), root, split)


def by_name(found):
    """Each picture's content, size, and objects by class name, keyed by the file name."""
    result = {}
    for record in found.images:
        objects = [
            (found.classes.name(int(label)), *box)
            for label, box in zip(record.labels, record.boxes.tolist(), strict=True)
        ]
        picture = record.path.read_bytes()
        result[record.path.name] = (picture, record.width, record.height, objects)
    return result


def odd_coco(root):
    """Fractions, tiny boxes, ids of all kinds, crowds, areas, masks, empty pictures, odd names."""
    rng = np.random.default_rng(0)
    documents = {}
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        (root / split).mkdir(parents=True)
        images, objects = [], []
        for index in range(count):
            width, height = int(rng.integers(30, 4000)), int(rng.integers(2, 60))
            name = f"{split} photo, {index} (1).png"
            Image.new("L", (width, height), index).save(root / split / name)
            image_id = (index + 100, f"id-{index}", 2**70 + index)[index % 3]
            images.append({"id": image_id, "file_name": name, "width": width, "height": height})
            for place in range(index * 3):
                x, w = sorted(rng.uniform(0, width, 2))
                y, h = sorted(rng.uniform(0, height, 2))
                box = [x, y, max(w - x, 0.2), max(h - y, 0.2)]
                box = [round(value, int(rng.integers(0, 9))) for value in box]
                box[2:] = [max(value, 0.2) for value in box[2:]]
                entry = {"id": len(objects) + 5, "image_id": image_id, "bbox": box}
                entry |= {"category_id": 10 * int(rng.integers(len(NAMES) - 1))}
                if place % 3 == 0:
                    entry |= {"area": box[2] * box[3] / 3 + 1, "iscrowd": int(place == 6)}
                    entry |= {"segmentation": [[x, y, x + 1.25, y, x, y + 1]]}
                if place == 4:
                    runs = {"counts": [3, 4, width * height - 7], "size": [height, width]}
                    entry |= {"segmentation": runs}
                objects.append(entry)
        categories = [{"id": 10 * n, "name": name} for n, name in enumerate(NAMES)]
        documents[split] = {"images": images, "annotations": objects, "categories": categories}
        if split == "test":
            del documents[split]["annotations"]
    (root / "annotations").mkdir()
    for split, document in documents.items():
        kind = "image_info" if split == "test" else "instances"
        (root / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(document))


def assert_same(old, new, *, ordered, crowds=True):
    """Compare annotations with those that were converted from them, without what is lost."""
    a, b = by_name(old), by_name(new)
    if ordered:
        assert list(a) == list(b)
    assert a.keys() == b.keys()
    for record in old.images if not crowds else ():
        keep = ~record.crowd
        picture, width, height, objects = a[record.path.name]
        a[record.path.name] = (
            picture,
            width,
            height,
            [o for o, k in zip(objects, keep, strict=True) if k],
        )
    assert a == b


@pytest.mark.parametrize("target", TARGETS)
def test_all_that_coco_holds_survives_as_far_as_the_target_holds_it(tmp_path, target):
    odd_coco(tmp_path / "in")
    result = convert(tmp_path / "in", tmp_path / "out", target)
    crowd_boxes = 0
    for split in ("train", "val"):
        old, new = read(tmp_path / "in", split), read(tmp_path / "out", split)
        assert not [p for p in new.problems if p.severity != "note"]
        crowds = target in ("coco", "voc")
        assert_same(old, new, ordered=target != "yolo", crowds=crowds)
        crowd_boxes += int(old.images.crowd.sum())
        assert result.images[split] == len(new)
        assert result.objects[split] == len(new.images.boxes)
        if target == "coco":
            assert [r.file_id for r in new.images] == [r.file_id for r in old.images]
            np.testing.assert_array_equal(new.images.areas, old.images.areas)
            np.testing.assert_array_equal(new.images.crowd, old.images.crowd)
            for one, other in zip(old.images, new.images, strict=True):
                for shape, copy in zip(one.segmentations, other.segmentations, strict=True):
                    assert (shape and shape.to_bytes()) == (copy and copy.to_bytes())
            assert new.classes == old.classes
    listed = read(tmp_path / "out", "test")
    assert not listed.annotated
    assert len(listed) == 2
    assert by_name(listed) == by_name(read(tmp_path / "in", "test"))
    said = "\n".join(result.not_kept)
    if target == "coco":
        assert said == ""
    else:
        assert crowd_boxes > 0
        assert f"crowds: {crowd_boxes} (" in said
        for what in ("areas of objects", "outlines and masks", "ids of images"):
            assert f"{what}: " in said


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", TARGETS)
def test_every_pair_gives_the_same_boxes(tmp_path, source, target):
    odd_coco(tmp_path / "coco")
    # A test split that only lists pictures has no labels that the others could hold.
    splits = ["train", "val"]
    convert(tmp_path / "coco", tmp_path / "in", source, splits=splits)
    result = convert(tmp_path / "in", tmp_path / "out", target)
    assert result.read_format == source
    assert result.written_format == target
    for split in splits:
        old, new = read(tmp_path / "in", split), read(tmp_path / "out", split)
        assert not [p for p in new.problems if p.severity != "note"]
        assert_same(
            old, new, ordered="yolo" not in (source, target), crowds=target in ("coco", "voc")
        )
        if source == target:
            # The names of these classes are no plain lines, which a list of classes needs.
            assert all("classes" in sentence for sentence in result.not_kept)
            assert not result.not_kept or source == "csv"
            assert new.classes.names == old.classes.names
            assert [r.file_id for r in new.images] == [r.file_id for r in old.images]
            for name in ("areas", "difficult"):
                before, after = (getattr(one.images, name) for one in (old, new))
                np.testing.assert_array_equal(before, after)
    assert not has_split(DataConfig(), tmp_path / "out", "test")


@pytest.mark.parametrize("name", TOOLS)
def test_every_format_that_is_read_can_be_converted(tmp_path, name):
    make, kind, counts = TOOLS[name]
    target = TARGETS[list(TOOLS).index(name) % len(TARGETS)]
    make(tmp_path / "in")
    result = convert(tmp_path / "in", tmp_path / "out", target)
    assert result.read_format == kind
    assert result.images == counts
    for split in counts:
        old = open_split(DataConfig(), tmp_path / "in", split, layouts.CLASSES)
        new = open_split(DataConfig(), tmp_path / "out", split, layouts.CLASSES)
        a, b = by_name(old), by_name(new)
        assert a.keys() == b.keys()
        for picture, (content, width, height, objects) in a.items():
            assert b[picture][:3] == (content, width, height)
            assert b[picture][3] == objects


@pytest.mark.parametrize("target", TARGETS)
def test_masks_of_penn_fudan_become_boxes(tmp_path, target):
    root = as_pennfudan(tmp_path / "made")
    convert(root, tmp_path / "out", target)
    assert_same(read(root), read(tmp_path / "out"), ordered=True)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("as_stored", [False, True])
def test_pictures_that_metadata_turn_keep_the_pixels_of_their_boxes(tmp_path, as_stored, target):
    root = tmp_path / "in"
    (root / "train").mkdir(parents=True)
    upright, _ = upright_picture((40, 20))
    images, objects = [], []
    for orientation in range(1, 9):
        name = f"{orientation}.png"
        save_turned(root / "train" / name, upright, orientation)
        with Image.open(root / "train" / name) as picture:
            width, height = picture.size if as_stored else upright.size
        entry = {"id": orientation, "file_name": name, "width": width, "height": height}
        images.append(entry)
        box = [3, 2, width - 7, height - 9]
        mask = np.zeros((height, width), dtype=bool)
        mask[2:5, 3:9] = True
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(int)))
        runs = np.diff([0, *edges, flat.size]).tolist()
        for shape in ([[3, 2, 9, 2, 9, 5]], {"counts": runs, "size": [height, width]}):
            objects.append(
                {
                    "id": len(objects),
                    "image_id": orientation,
                    "category_id": 1,
                    "bbox": box,
                    "segmentation": shape,
                }
            )
            box = [box[0] + 1, *box[1:]]
    document = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "a"}]}
    (root / "train.json").write_text(json.dumps(document))
    convert(root, tmp_path / "out", target)
    old, new = read(root), read(tmp_path / "out")
    assert len(new) == 8
    for one, other in zip(old.images, new.images, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes()
        assert (other.width, other.height) == (40, 20)
        crops = []
        for record in (one, other):
            picture = load_image(record.path, (record.width, record.height))
            crops.append(
                [
                    sorted(np.asarray(picture.crop(tuple(map(int, box)))).reshape(-1, 3).tolist())
                    for box in record.boxes.tolist()
                ]
            )
        assert crops[0] == crops[1]
        if target == "coco":
            masks = [
                [s.mask(r.width, r.height).sum() for s in r.segmentations] for r in (one, other)
            ]
            assert masks[0] == masks[1]
            where = [
                sorted(
                    np.asarray(load_image(r.path, (r.width, r.height)))[
                        r.segmentations[1].mask(r.width, r.height)
                    ].tolist()
                )
                for r in (one, other)
            ]
            assert where[0] == where[1]


@needs_real_data
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["coco", "VOCdevkit", "PennFudanPed", "csv"])
def test_real_data_keep_all_boxes(tmp_path, name, target):
    result = convert(REAL / name, tmp_path / "out", target, images="link")
    for split in result.images:
        old, new = read(REAL / name, split), read(tmp_path / "out", split)
        assert_same(old, new, ordered=target != "yolo", crowds=target in ("coco", "voc"))


@pytest.mark.parametrize("target", TARGETS)
def test_polygons_of_other_tools_are_kept_by_coco_and_counted_by_others(tmp_path, target):
    tool_layouts.labelme(tmp_path / "in")
    files = sorted((tmp_path / "in").rglob("*.json"))
    for path in files:
        content = json.loads(path.read_text())
        content["shapes"][0] |= tool_layouts.POLYGON
        path.write_text(json.dumps(content))
    result = convert(tmp_path / "in", tmp_path / "out", target)
    (shape,) = {s for r in read(tmp_path / "in").images for s in map(type, r.segmentations)}
    assert shape is not type(None)
    assert_same(read(tmp_path / "in"), read(tmp_path / "out"), ordered=True)
    polygons = f"objects of shape polygon: {len(files)} (the box around it is written)"
    assert (polygons in result.not_kept) == (target != "coco")
    if target == "coco":
        assert result.not_kept == ()
        for record in read(tmp_path / "out").images:
            (outline,) = record.segmentations
            assert outline.box() == tuple(record.boxes[0].tolist())
