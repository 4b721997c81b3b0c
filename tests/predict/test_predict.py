"""``Predictor.predict`` takes pictures in every form and returns what was found in each."""

from __future__ import annotations

import io
import itertools
import pickle
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as F

from rcnn_ext.errors import UserError
from rcnn_ext.models import fast_rcnn, faster_rcnn, localizer
from rcnn_ext.predict.detections import Detections
from rcnn_ext.predict.predictor import Predictor
from rcnn_ext.predict.stream import as_float
from tests.helpers.corner_model import CLASSES, Corner

# Red, green and blue differ, so that a wrong order of channels shows.
COLOR = (255, 102, 0)
MEANS = [1.0, 0.4, 0.0]
GRAY = [0.4, 0.4, 0.4]


def solid(width=40, height=20, color=COLOR):
    return Image.new("RGB", (width, height), color)


def predictor(**options):
    return Predictor(Corner(**options), CLASSES)


@pytest.fixture
def photo(tmp_path):
    solid().save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


ARRAY = np.asarray(solid())
CHANNELS_FIRST = torch.from_numpy(ARRAY.transpose(2, 0, 1).copy())


def content():
    file = io.BytesIO()
    solid().save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("picture", "options", "means"),
    [
        (solid(), {}, MEANS),
        (solid().convert("RGBA"), {}, MEANS),
        (solid().convert("P"), {}, MEANS),
        (Image.new("L", (40, 20), 102), {}, GRAY),
        (Image.fromarray(np.full((20, 40), 26214, np.uint16)), {}, GRAY),
        (ARRAY, {}, MEANS),
        (ARRAY[..., ::-1], {"bgr": True}, MEANS),
        (ARRAY[..., [2, 1, 0, 0]], {"bgr": True}, MEANS),
        (ARRAY[:, ::-1], {}, MEANS),
        (np.dstack([ARRAY, ARRAY[..., :1]]), {}, MEANS),
        (ARRAY[..., 1], {}, GRAY),
        (ARRAY[..., 1:2], {"bgr": True}, GRAY),
        (ARRAY.astype(np.uint16) * 257, {}, MEANS),
        (ARRAY.astype(np.float64) / 255, {}, MEANS),
        ((ARRAY / 255).astype(np.float16), {}, MEANS),
        (CHANNELS_FIRST, {}, MEANS),
        (CHANNELS_FIRST / 255, {}, MEANS),
        ((CHANNELS_FIRST / 255).double().requires_grad_(), {}, MEANS),
        (CHANNELS_FIRST[1:2], {}, GRAY),
        (CHANNELS_FIRST[1], {}, GRAY),
        (content(), {}, MEANS),
        (bytearray(content()), {}, MEANS),
        (io.BytesIO(content()), {}, MEANS),
    ],
)
def test_one_picture_in_any_form_gives_its_detections(picture, options, means):
    model = predictor()
    found = model.predict(picture, **options)
    assert isinstance(found, Detections)
    assert found.boxes.tolist() == [[20, 10, 40, 20], [0, 0, 10, 5]]
    assert found.names == ["dog", "cat"]
    assert found.image_size == (20, 40)
    np.testing.assert_allclose(model.means, [means], atol=2e-3)
    assert found.picture.size == (40, 20)
    shown = np.asarray(found.picture)[0, 0] / 255
    np.testing.assert_allclose(shown, means, atol=4e-3)


def test_a_read_only_array_is_taken_without_a_warning(recwarn):
    array = ARRAY.copy()
    array.flags.writeable = False
    predictor().predict(array)
    assert not recwarn


def test_files_are_given_by_path_url_folder_or_pattern(photo, tmp_path, monkeypatch):
    model = predictor()
    for one in (photo, str(photo), photo.as_uri(), f"file://localhost{photo}"):
        found = model.predict(one)
        assert isinstance(found, Detections)
        assert (found.path, str(found.name)) == (photo, "photo.png")
    (tmp_path / "more").mkdir()
    solid(8, 8).save(tmp_path / "more" / "a b.png")
    many = model.predict(tmp_path)
    assert [one.name.as_posix() for one in many] == ["more/a b.png", "photo.png"]
    assert [one.image_size for one in model.predict(f"{tmp_path}/more/*.png")] == [(8, 8)]
    assert model.predict((tmp_path / "more" / "a b.png").as_uri()).image_size == (8, 8)
    (tmp_path / "list.csv").write_text("filename\nphoto.png\n")
    assert [one.path for one in model.predict(tmp_path / "list.csv")] == [photo]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model.predict("photo.png").image_size == model.predict("~/photo.png").image_size


def test_turned_pictures_are_brought_upright_in_every_form(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    solid(40, 20).save(tmp_path / "turned.jpg", exif=exif)
    model = predictor()
    found = model.predict([tmp_path / "turned.jpg", Image.open(tmp_path / "turned.jpg")])
    assert [one.image_size for one in found] == [(40, 20), (40, 20)]
    assert [one.picture.size for one in found] == [(20, 40), (20, 40)]


def test_several_pictures_of_all_kinds_are_batched_in_order(photo):
    model = predictor()
    found = model.predict([photo, solid(8, 4), ARRAY, str(photo), CHANNELS_FIRST], batch_size=2)
    assert model.detector.batches == [2, 2, 1]
    assert [one.width for one in found] == [40, 8, 40, 40, 40]
    assert [str(one.name) for one in found] == [
        "photo.png",
        "image-2",
        "image-3",
        "photo.png",
        "image-5",
    ]
    assert model.predict((ARRAY,))[0].width == 40
    assert [one.width for one in model.predict(np.stack([ARRAY] * 3))] == [40] * 3
    assert [one.width for one in model.predict(torch.stack([CHANNELS_FIRST] * 2))] == [40] * 2
    assert model.predict([]) == []
    assert [one.width for one in model.predict(np.array([str(photo)] * 2))] == [40] * 2
    assert [one.width for one in model.predict({photo: 1}.keys())] == [40]
    assert [one.width for one in model.predict(photo.parent.glob("*.png"))] == [40]
    image = Image.open(photo)
    assert [one.width for one in model.predict([image] * 8)] == [40] * 8


def test_an_iterator_is_read_as_its_results_are():
    read = []

    def frames():
        buffer = np.zeros((20, 40, 3), np.uint8)
        for number in itertools.count():
            buffer[:] = number  # as a video reader does that fills one buffer
            read.append(number)
            yield buffer

    model = predictor()
    found = model.predict(frames(), batch_size=2, threads=1)
    assert read == []
    first = list(itertools.islice(found, 5))
    assert len(read) < 12
    assert [round(mean[0] * 255) for mean in model.detector.means[:5]] == [0, 1, 2, 3, 4]
    assert [np.asarray(one.picture)[0, 0, 0] for one in first] == [0, 1, 2, 3, 4]
    found.close()
    # A loader of batches has a length: its results are a list.
    assert len(model.predict(torch.utils.data.DataLoader([CHANNELS_FIRST] * 3, batch_size=2))) == 3


def test_pictures_are_decoded_while_the_network_works(photo, monkeypatch):
    decoding, network = threading.Event(), threading.Event()

    class Waits(nn.Module):
        def forward(self, images):
            network.set()
            # Only a picture of the next batch can let the first batch go on.
            assert decoding.wait(20)
            return [
                {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0), "scores": torch.zeros(0)}
                for _ in images
            ]

    from rcnn_ext.predict.pictures import PictureFile

    decode = PictureFile.decode

    def watched(self, channels):
        if self.name.name == "second.png":
            assert network.wait(20)
            decoding.set()
        return decode(self, channels)

    monkeypatch.setattr(PictureFile, "decode", watched)
    second = photo.with_name("second.png")
    solid().save(second)
    found = Predictor(Waits().eval(), CLASSES).predict([photo, second], batch_size=1)
    assert [len(one) for one in found] == [0, 0]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("nowhere.png", "nowhere.png does not exist: name images"),
        ("https://example.org/a.jpg", "is not on this machine: download it first"),
        ("file://server/a.jpg", "is not on this machine"),
        (None, "cannot take None as a picture: expected a path, a file:// URL"),
        (7, "cannot take a int as a picture"),
        ({"image": ARRAY}, "cannot take a dict as a picture"),
        ([[ARRAY]], "cannot take a list as a picture"),
        (io.StringIO("x"), "image-1 is a file opened as text: open it with mode 'rb'"),
        (b"no picture", "image-1 is not an image that Pillow can read"),
        (ARRAY.astype(np.int64), "image-1 is an array of int64; expected uint8, uint16 or floats"),
        (ARRAY.astype(np.float32), r"floats from 0 to 255; expected \[0, 1\]: divide .* by 255"),
        (np.full((4, 4, 3), np.nan), "floats from nan to nan"),
        (ARRAY.transpose(2, 0, 1), r"shape \(3, 20, 40\); .* bring them there with \(1, 2, 0\)"),
        (np.zeros((4, 4, 2), np.uint8), "with 1, 3 or 4 channels"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (torch.from_numpy(ARRAY.copy()), r"bring them there with permute\(2, 0, 1\)"),
        (CHANNELS_FIRST.long(), "image-1 is a tensor of torch.int64"),
        (CHANNELS_FIRST.float(), "tensor of floats from 0 to 255"),
    ],
)
def test_what_is_no_picture_is_told_in_one_line(picture, message):
    with pytest.raises(UserError, match=message) as error:
        predictor().predict(picture)
    assert "\n" not in str(error.value)


def test_broken_pictures_stop_or_stand_in_the_place_of_their_results(photo, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    images = [photo, bad, "nowhere.png", 7, photo]
    with pytest.raises(UserError, match="bad.png is not an image"):
        predictor().predict(images)
    found = predictor().predict(images, on_error="return", batch_size=2)
    assert [type(one) for one in found] == [Detections, *[UserError] * 3, Detections]
    with pytest.raises(UserError, match="on_error must be 'raise' or 'return'"):
        predictor().predict(photo, on_error="skip")


@pytest.mark.parametrize(
    "options", [{"min_score": 1.5}, {"min_score": -1}, {"batch_size": 0}, {"threads": 0.5}]
)
def test_options_out_of_range_are_told(options):
    with pytest.raises(UserError, match=f"{next(iter(options))} must be"):
        predictor().predict(ARRAY, **options)


def test_min_score_is_that_of_the_command_line_by_default():
    class Scores(Corner):
        def forward(self, images):
            return [
                {**one, "scores": torch.tensor([0.9, 0.049])} for one in super().forward(images)
            ]

    model = Predictor(Scores(), CLASSES)
    assert [len(model.predict(ARRAY, min_score=score)) for score in (None, 0, 0.95)] == [1, 2, 0]


def small(build, **options):
    torch.manual_seed(0)
    options = {"min_size": 64, "max_size": 64, **options}
    return build("resnet18", num_classes=3, **options).eval()


def test_a_call_takes_tensors_as_the_model_does():
    detector = small(faster_rcnn, box_score_thresh=0.0)
    model = Predictor(detector, ["cat", "dog"])
    images = [torch.rand(3, 48, 64), torch.rand(3, 64, 40)]
    with torch.inference_mode():
        expected = detector(images)
        called = model(images)
    found = model.predict(images, min_score=0)
    for one, two, three in zip(expected, called, found, strict=True):
        for name in ("boxes", "labels", "scores"):
            assert torch.equal(one[name], two[name])
            assert torch.equal(one[name], getattr(three, name))
    assert model.backbone is detector.backbone
    assert model.class_names == ("cat", "dog")
    assert model.state_dict().keys() == detector.state_dict().keys()
    model.load_state_dict(detector.state_dict())
    with pytest.raises(AttributeError, match="no_such"):
        _ = model.no_such
    model.train()
    with pytest.raises(UserError, match=r"in training mode: call model.eval\(\) first"):
        model.predict(images)
    assert len(model.eval().predict(images)) == 2
    again = pickle.loads(pickle.dumps(model)).predict(images, min_score=0)
    assert torch.equal(again[0].boxes, found[0].boxes)


def test_fast_rcnn_takes_proposals_or_searches_for_them():
    model = Predictor(small(fast_rcnn, box_score_thresh=0.0), CLASSES)
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 30, 30], [10, 10, 60, 40]])
    image = F.to_dtype(F.to_image(picture), torch.float32, scale=True)
    with torch.inference_mode():
        (expected,) = model([image], [torch.from_numpy(boxes).float()])
    found = model.predict(picture, proposals=boxes, min_score=0)
    assert torch.equal(found.boxes, expected["boxes"])
    many = model.predict([picture, picture], proposals=[boxes, torch.zeros(0, 4)], min_score=0)
    torch.testing.assert_close(many[0].boxes, expected["boxes"])
    assert len(many[1]) == 0
    assert len(model.predict(picture, min_score=0)) > 0
    for wrong, message in (
        ([[1, 2, 3]], "shape"),
        ([[9, 9, 1, 1]], "x1 < x2"),
        ([[0, 0, np.nan, 1]], "finite"),
    ):
        with pytest.raises(UserError, match=message):
            model.predict(picture, proposals=wrong)
    with pytest.raises(UserError, match="image-2 has no proposals: there are 1"):
        model.predict([picture, picture], proposals=[boxes])
    with pytest.raises(UserError, match="1 pictures, but proposals for 2"):
        model.predict([picture], proposals=[boxes, boxes])
    with pytest.raises(UserError, match="this model finds its own"):
        predictor().predict(picture, proposals=boxes)


def test_a_localizer_gives_one_detection_with_any_score():
    model = Predictor(localizer("cnn", num_classes=3, image_size=32).eval(), CLASSES)
    assert [len(one) for one in model.predict([ARRAY, solid(8, 8)])] == [1, 1]
    assert len(model.predict(ARRAY, min_score=1.0)) == 0


def test_a_model_of_other_channels_takes_arrays_of_them():
    class Multispectral(Corner):
        def __init__(self, channels):
            super().__init__()
            self.transform = type("Transform", (), {"image_mean": [0.0] * channels})

    model = Predictor(Multispectral(5), CLASSES)
    found = model.predict(np.full((20, 40, 5), 51, np.uint8))
    assert model.means == [[0.2] * 5]
    assert found.picture.size == (40, 20)
    with pytest.raises(UserError, match="with 5 channels"):
        model.predict(ARRAY)
    with pytest.raises(UserError, match="has 3 channels, and the model takes 5"):
        model.predict(solid())
    gray = Predictor(Multispectral(1), CLASSES)
    gray.predict([ARRAY[..., 1], Image.new("L", (40, 20), 102), solid(color=(102, 102, 102))])
    np.testing.assert_allclose(gray.means, [[0.4]] * 3, atol=2e-3)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_pixels_become_the_same_floats_as_torchvision_makes(order):
    pixels = torch.arange(256, dtype=torch.uint8).view(4, 4, 16).permute(order)
    floats = as_float(pixels)
    assert torch.equal(floats, F.to_dtype(pixels, torch.float32, scale=True))
    assert floats.dtype == torch.float32
    assert floats.stride() == pixels.stride()
