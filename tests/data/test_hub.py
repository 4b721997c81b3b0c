"""Streaming from the Hub, on local data sets of the same schema: nothing is downloaded."""

from __future__ import annotations

import dataclasses
import io
import warnings

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from rcnn_ext.config.data import HubConfig
from rcnn_ext.data import AugmentConfig, DataConfig, build_augmentation
from rcnn_ext.data.hub import HubStream, open_stream, stream_loader
from rcnn_ext.errors import UserError

datasets = pytest.importorskip("datasets", reason="datasets comes with the extra hf")

pytestmark = pytest.mark.usefixtures("offline_hub")

NAMES = ["cat", "dog"]


def content(value, size=(40, 30)):
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def row(index):
    return {
        "image_id": index,
        "image": {"bytes": content(index), "path": None},
        "objects": {
            "bbox": [[1.0, 2.0, 10.0, 20.0], [30.0, 20.0, 5.0, 5.0]][: 1 + index % 2],
            "category": [1, 0][: 1 + index % 2],
            "area": [77.5, 25.0][: 1 + index % 2],
            "iscrowd": [0, 1][: 1 + index % 2],
        },
    }


FEATURES = datasets.Features(
    {
        "image_id": datasets.Value("int64"),
        "image": datasets.Image(),
        "objects": {
            "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
            "category": datasets.List(datasets.ClassLabel(names=NAMES)),
            "area": datasets.List(datasets.Value("float32")),
            "iscrowd": datasets.List(datasets.Value("int64")),
        },
    }
)


@pytest.fixture
def make(tmp_path):
    def make(count=12, shards=4, rows=None, split="train", features=FEATURES):
        rows = [row(index) for index in range(count)] if rows is None else rows
        table = datasets.Dataset.from_list(rows, features=features)
        folder = tmp_path / "hub" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        for shard in range(shards):
            name = f"{split}-{shard:05d}-of-{shards:05d}.parquet"
            table.shard(shards, shard).to_parquet(folder / name)
        return tmp_path / "hub"

    return make


def config(**hub):
    return DataConfig(format="hf", hf=HubConfig(shuffle_buffer=4, **hub))


def ids(stream, count=None, workers=0):
    loader = iter(DataLoader(stream, batch_size=None, num_workers=workers))
    taken = loader if count is None else (next(loader) for _ in range(count))
    return [int(target["image_id"]) for _, target in taken]


def test_evaluation_gives_all_rows_once_with_crowds(make):
    root = make(split="validation")
    split = open_stream(config(), root, "val")
    assert split.classes.names == ("cat", "dog")
    assert split.summary() == "a stream of 4 shards, 2 classes"
    samples = list(HubStream(split))
    assert [int(target["image_id"]) for _, target in samples] == list(range(12))
    image, target = samples[3]
    assert image.shape == (3, 30, 40)
    assert image[0, 0, 0] == pytest.approx(3 / 255)
    assert target["boxes"].tolist() == [[1, 2, 11, 22], [30, 20, 35, 25]]
    assert target["labels"].tolist() == [2, 1]
    assert target["areas"].tolist() == [77.5, 25.0]
    assert target["crowd"].tolist() == [False, True]


@pytest.mark.parametrize(
    ("shards", "processes", "workers"), [(1, 2, 0), (2, 2, 2), (6, 3, 0), (6, 2, 2), (2, 3, 0)]
)
def test_processes_and_workers_share_an_epoch_without_overlap(make, shards, processes, workers):
    split = open_stream(config(), make(12, shards), "train")
    once: list[int] = []
    epoch: list[int] = []
    for rank in range(processes):
        stream = HubStream(split, rank=rank, processes=processes)
        own = ids(stream, workers=workers)
        once += own
        if not workers:
            stream = HubStream(split, v2.Identity(), rank=rank, processes=processes)
            epoch += ids(stream, len(own))
    assert sorted(once) == list(range(12))
    assert workers or sorted(epoch) == list(range(12))


def test_training_shuffles_each_epoch_anew_and_leaves_crowds_out(make):
    split = open_stream(config(), make(), "train")
    stream = HubStream(split, v2.Identity(), seed=3)
    order = ids(stream, 36)
    epochs = [order[i : i + 12] for i in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert ids(stream, 36) == order
    assert ids(HubStream(split, v2.Identity(), seed=4), 36) != order
    assert all(not target["crowd"].any() for _, (_, target) in zip(range(12), stream, strict=False))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_stream_goes_on_as_if_it_had_not_stopped(make, workers):
    rows = [row(index) for index in range(12)]
    for broken in (0, 3, 4):
        rows[broken]["image"]["bytes"] = b"nothing"
    split = open_stream(config(), make(rows=rows, shards=2), "train")
    split = dataclasses.replace(split, config=dataclasses.replace(split.config, on_error="skip"))
    augmentation = build_augmentation(AugmentConfig(color=0.5, zoom=(0.5, 1.5)))

    def batches(count, start):
        stream = HubStream(split, augmentation, mosaic=0.5, batch_size=3, start=start)
        loader = iter(stream_loader(stream, workers, False))
        return [next(loader) for _ in range(count)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        whole, rest = batches(8, 0), batches(3, 5)
    for (images, targets), (again, others) in zip(whole[5:], rest, strict=True):
        assert all(map(torch.equal, images, again))
        for target, other in zip(targets, others, strict=True):
            assert all(torch.equal(target[name], other[name]) for name in target)


def test_images_without_objects_are_background_by_option(make):
    rows = [row(index) for index in range(4)]
    rows[1]["objects"] = {name: [] for name in rows[1]["objects"]}
    rows[3]["objects"]["iscrowd"] = [1, 1]  # Only crowds: no use at all.
    split = open_stream(config(), make(rows=rows, shards=1), "train")
    assert sorted(ids(HubStream(split, v2.Identity()), 3)) == [0, 1, 2]
    without = dataclasses.replace(split, config=dataclasses.replace(split.config, keep_empty=False))
    assert sorted(ids(HubStream(without, v2.Identity()), 2)) == [0, 2]


def test_mosaics_take_the_images_before(make):
    split = open_stream(config(), make(), "train")
    stream = HubStream(split, v2.Identity(), mosaic=1.0)
    reds = [image[0].unique().numel() for _, (image, _) in zip(range(8), stream, strict=False)]
    assert reds[:3] == [1, 1, 1]
    assert reds[3:] == [4] * 5


def test_damaged_rows_stop_or_are_left_out(make):
    rows = [row(index) for index in range(8)]
    rows[2]["image"]["bytes"] = rows[2]["image"]["bytes"][:40]
    rows[5]["objects"]["bbox"] = [[1.0, 1.0, 5.0, 5.0]]
    split = open_stream(config(), make(shards=1, rows=rows), "train")
    with pytest.raises(UserError, match="image 2 of .* is not an image"):
        list(HubStream(split))
    lenient = dataclasses.replace(split, config=dataclasses.replace(split.config, on_error="skip"))
    with (
        pytest.warns(RuntimeWarning, match="image 5 of .* has 1 boxes but 2 classes"),
        pytest.warns(RuntimeWarning, match="image 2 of .* is not an image"),
    ):
        assert ids(HubStream(lenient)) == [0, 1, 3, 4, 6, 7]


def test_chosen_classes_and_boxes_by_corners(make):
    root = make()
    chosen = dataclasses.replace(config(box_format="xyxy"), classes=["cat"])
    split = open_stream(chosen, root, "train")
    assert split.classes.category_ids == (0,)
    target = list(HubStream(split))[1][1]
    assert target["labels"].tolist() == []  # Its corners are the wrong way round: no area.
    with pytest.raises(UserError, match="no class 'bird'; it has cat, dog"):
        open_stream(dataclasses.replace(config(), classes=["cat", "bird"]), root, "train")
    other = open_stream(config(), root, "train", ["bird", "dog"])
    assert other.classes.category_ids == (2, 1)
    assert list(HubStream(other))[0][1]["labels"].tolist() == [2]


def test_data_that_are_not_streamed_are_the_same(make):
    root = make()
    split = open_stream(config(streaming=False), root, "train")
    assert sorted(ids(HubStream(split))) == list(range(12))


@pytest.mark.parametrize(
    ("hub", "message"),
    [
        ({"image": "picture"}, "no column 'picture'"),
        ({"label": "class"}, r"objects has no 'class' .*it has bbox, category"),
        ({"train_split": "training"}, "cannot open the training split"),
    ],
)
def test_what_is_not_there_is_named(make, hub, message):
    with pytest.raises(UserError, match=message):
        open_stream(config(**hub), make(), "train")


def test_folders_that_do_not_exist(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_stream(config(), tmp_path / "nowhere", "train")
