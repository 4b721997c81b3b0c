"""Pictures of every mode keep their contrast, by the rule of the module of values."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.data import DetectionDataset
from rcnn_ext.data.images import image_size, load_image, load_tensor, picture_to_rgb
from rcnn_ext.data.images.values import unit_values
from rcnn_ext.errors import UserError
from rcnn_ext.selective_search.images import as_rgb
from tests.helpers.pictures import gray_ramp, save_deep_png

RAMP = gray_ramp()
WIDE = RAMP.astype(np.int64)


def close(picture, expected=RAMP, within=2):
    found = np.asarray(picture, dtype=int)[..., 0]
    return found.shape == expected.shape and np.abs(found - expected).max() <= within


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((WIDE * 257).astype(np.uint16), RAMP),
        ((WIDE * 4095 // 255).astype(np.uint16), RAMP),  # 12 bits in 16
        ((WIDE * 1023 // 255).astype(np.uint16), RAMP),  # 10 bits in 16
        (RAMP.astype(np.uint16), RAMP),  # 8 bits in 16
        ((WIDE * 128).astype(np.int16), RAMP),
        ((WIDE * 257).astype(np.int32), RAMP),
        (RAMP.astype(np.int32), RAMP),
        ((WIDE * 16843009).astype(np.uint32), WIDE * 255 // 239),
        ((WIDE * 100 - 9000).astype(np.int16), WIDE * 255 // 239),
        ((RAMP / 255).astype(np.float32), RAMP),
        (RAMP.astype(np.float32), RAMP),
        ((WIDE * 257).astype(np.float32), RAMP),
        ((RAMP / 255).astype(np.float64), RAMP),
        ((RAMP / 100 - 1).astype(np.float32), WIDE * 255 // 239),
        (np.where(RAMP == 7, np.nan, RAMP / 255).astype(np.float32), np.where(RAMP == 7, 0, RAMP)),
        (
            np.where(RAMP == 7, np.inf, RAMP / 255).astype(np.float32),
            np.where(RAMP == 7, 255, RAMP),
        ),
    ],
)
def test_deep_tiff_files_keep_their_contrast(tmp_path, values, expected):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert close(load_image(tmp_path / "a.tif"), expected)
    assert image_size(tmp_path / "a.tif") == RAMP.shape[::-1]
    gray = load_tensor(tmp_path / "a.tif", channels=1)
    assert (gray.dtype.is_floating_point, tuple(gray.shape)) == (True, (1, *RAMP.shape))
    assert np.abs(gray[0].numpy() * 255 - expected).max() <= 2


@pytest.mark.parametrize("maximum", [127, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", ["P2", "P5"])
def test_pgm_files_are_scaled_by_the_maximum_that_they_state(tmp_path, kind, maximum):
    values = WIDE * maximum // 255
    body = " ".join(map(str, values.ravel())).encode()
    if kind == "P5":
        body = values.astype(">u2" if maximum > 255 else np.uint8).tobytes()
    head = f"{kind}\n{RAMP.shape[1]} {RAMP.shape[0]}\n{maximum}\n".encode()
    (tmp_path / "a.pgm").write_bytes(head + body)
    assert close(load_image(tmp_path / "a.pgm"))


@pytest.mark.parametrize(
    "options",
    [
        None,
        {},
        {"compression": "lzw"},
        {"compression": "zlib", "predictor": True},
        {"byteorder": ">"},
        {"byteorder": ">", "compression": "lzw"},
    ],
)
def test_colors_of_12_bits_in_16_keep_their_contrast(tmp_path, options):
    values = np.stack([WIDE * 17, WIDE * 3, WIDE * 5], axis=-1).astype(np.uint16)
    path = tmp_path / ("a.png" if options is None else "a.tif")
    save_deep_png(path, values)
    if options is not None:
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(path, values, photometric="rgb", **options)
    assert np.array_equal(np.asarray(load_image(path)), np.rint(values / 4095 * 255))
    stated = np.asarray(load_image(path, max_value=65535))
    assert np.array_equal(stated, np.rint(values / 65535 * 255))
    save_deep_png(path, values * 15)
    assert close(load_image(path))


def test_the_range_of_a_camera_can_be_named(tmp_path):
    dark = (RAMP // 4).astype(np.uint16)
    Image.fromarray(dark).save(tmp_path / "a.png")
    assert close(load_image(tmp_path / "a.png", max_value=255), RAMP // 4)
    assert close(load_image(tmp_path / "a.png", max_value=63.75), RAMP // 4 * 4)
    gray = load_tensor(tmp_path / "a.png", channels=1, max_value=4095)
    assert float(gray.max()) == pytest.approx(59 / 4095)


@pytest.mark.parametrize("values", [np.full((2, 2), np.nan, np.float32), np.zeros((2, 2), int)])
def test_values_without_a_range_are_black(values):
    assert unit_values(values).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("L", "a.png"),
        ("RGB", "a.png"),
        ("RGBA", "a.png"),
        ("LA", "a.png"),
        ("P", "a.png"),
        ("P", "a.gif"),
        ("CMYK", "a.jpg"),
        ("CMYK", "a.tif"),
        ("YCbCr", "a.jpg"),
        ("L", "a.webp"),
        ("L", "a.bmp"),
        ("L", "a.tga"),
        ("L", "a.jp2"),
    ],
)
def test_the_contrast_of_every_mode_is_kept(tmp_path, mode, name):
    picture = Image.fromarray(RAMP).convert("RGB" if mode in ("CMYK", "YCbCr") else "L")
    options = {"quality": 95} if name.endswith(("jpg", "webp")) else {}
    picture.convert(mode).save(tmp_path / name, **options)
    assert close(load_image(tmp_path / name), within=4)


def test_transparency_is_dropped_unless_it_is_all_there_is(tmp_path, recwarn):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "shape.png")
    shape = np.asarray(load_image(tmp_path / "shape.png"))
    assert (shape[:2].max(), shape[2:].min()) == (0, 255), "black on white"
    pixels[:, :2, :3] = 200
    Image.fromarray(pixels).save(tmp_path / "colors.png")
    assert np.array_equal(np.asarray(load_image(tmp_path / "colors.png")), pixels[..., :3])
    palette = Image.fromarray(RAMP).convert("P")
    palette.save(tmp_path / "palette.png", transparency=bytes(100))
    assert close(load_image(tmp_path / "palette.png"))
    keyed = Image.fromarray(RAMP)
    keyed.info["transparency"] = 5
    assert close(picture_to_rgb(keyed))
    assert keyed.info["transparency"] == 5
    assert not recwarn.list


def test_of_several_pages_and_frames_the_first_is_read(tmp_path):
    first, second = Image.fromarray(RAMP), Image.new("L", (9, 9), 255)
    for name in ("a.tif", "a.gif", "a.png", "a.webp"):
        options = {"lossless": True} if name == "a.webp" else {}
        first.save(
            tmp_path / name, save_all=True, append_images=[first.point(lambda v: 0)], **options
        )
        assert close(load_image(tmp_path / name)), name
    first.save(tmp_path / "sizes.tif", save_all=True, append_images=[second])
    assert load_image(tmp_path / "sizes.tif").size == first.size


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 12])
@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_multispectral_files_become_tensors(tmp_path, channels, layout, kind):
    tifffile = pytest.importorskip("tifffile")
    factor = 257 if kind == np.uint16 else 1
    # The first channel decides the depth, and each has values of its own.
    bands = np.stack([(RAMP // (1 + index)).astype(kind) * factor for index in range(channels)])
    bands[0, 0, 0] = 255 * factor
    options = {} if layout == "pages" else {"planarconfig": layout}
    if channels == 1:
        bands, options = bands[0], {}
    stored = bands.transpose(1, 2, 0) if layout == "contig" and channels > 1 else bands
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", **options)
    image = load_tensor(tmp_path / "a.tif", RAMP.shape[::-1], channels=channels)
    assert (str(image.dtype), tuple(image.shape)) == ("torch.float32", (channels, *RAMP.shape))
    expected = bands.reshape(channels, *RAMP.shape) / (255 * factor)
    assert np.allclose(image.numpy(), expected, atol=1e-6)
    assert load_image(tmp_path / "a.tif", channels=channels).mode == "RGB"


def test_other_numbers_of_channels_are_named(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    five = np.stack([RAMP] * 5)
    tifffile.imwrite(tmp_path / "five.tif", five, photometric="minisblack", planarconfig="separate")
    Image.fromarray(RAMP).convert("RGB").save(tmp_path / "rgb.png")
    for name, channels, found in (("five.tif", 3, 5), ("five.tif", 4, 5), ("rgb.png", 5, 3)):
        message = rf"{name} has {found} channels, but {channels} are expected"
        with pytest.raises(UserError, match=message):
            load_tensor(tmp_path / name, channels=channels)
    tifffile.imwrite(tmp_path / "complex.tif", RAMP.astype(np.complex64))
    with pytest.raises(UserError, match=r"complex\.tif has complex values"):
        load_image(tmp_path / "complex.tif")


@pytest.mark.parametrize("mode", ["1", "P", "LA", "PA", "CMYK", "I", "F", "I;16", "HSV", "RGBX"])
def test_searches_see_the_colors_of_pillow_images(mode):
    gray = Image.fromarray(np.where(RAMP > 99, 255, 0).astype(np.uint8))
    picture = gray.convert("RGB").convert(mode) if mode in ("HSV", "RGBX", "CMYK") else None
    picture = picture or gray.convert("LA" if mode == "PA" else mode)
    picture = picture.convert("PA") if mode == "PA" else picture
    expected = np.repeat(np.asarray(gray)[..., None], 3, axis=2)
    assert np.array_equal(as_rgb(picture), expected)


def test_datasets_read_as_many_channels_as_the_recipe_says(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    from rcnn_ext.config import DataConfig
    from rcnn_ext.config.augment import AugmentConfig
    from rcnn_ext.data import TrainingStream, build_augmentation, open_split
    from rcnn_ext.data.check import check_split
    from rcnn_ext.data.statistics import channel_statistics

    for part in ("images/train", "labels/train"):
        (tmp_path / part).mkdir(parents=True)
    for index in range(4):
        bands = np.stack([RAMP] * 5).astype(np.uint16) * 257
        path = tmp_path / f"images/train/{index}.tif"
        tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="separate")
        (tmp_path / f"labels/train/{index}.txt").write_text("0 .5 .5 .4 .5\n")
    config = DataConfig(format="yolo", channels=5)
    train = open_split(config, tmp_path, "train")
    image, _ = DetectionDataset(train)[0]
    assert tuple(image.shape) == (5, *RAMP.shape)
    augment = AugmentConfig(zoom=(0.5, 0.8), scale_jitter=(0.5, 2.0), mosaic=1.0, blur=1.0)
    stream = TrainingStream(train, build_augmentation(augment, 5), seed=0, mosaic=1.0)
    varied, _ = stream[0]
    assert varied.shape == image.shape
    assert 0 <= float(varied.min()) <= float(varied.max()) <= 1
    mean, std = channel_statistics(train)
    assert mean == pytest.approx([RAMP.mean() / 255] * 5)
    assert std == pytest.approx([RAMP.std() / 255] * 5)
    assert not check_split(config, tmp_path, "train").report.problems
    wrong = check_split(DataConfig(format="yolo"), tmp_path, "train").report.errors()
    assert len(wrong) == 4
    assert "5 channels, but 3 are expected" in str(wrong[0])
    with pytest.raises(ValueError, match="they change RGB colors"):
        DataConfig(channels=5, augment=AugmentConfig(color=0.1))
