"""Broken metadata never decide whether a picture is read; broken and huge pictures are named."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from PIL import Image, ImageFile

from rcnn_ext.cli import main
from rcnn_ext.config import DataConfig
from rcnn_ext.data import find_images, open_split
from rcnn_ext.data.images import image_size, is_picture, load_image, load_mask
from rcnn_ext.errors import UserError
from tests.helpers.pictures import (
    png_chunk,
    png_header,
    upright_picture,
    with_jpeg_segment,
    with_png_chunk,
)

UPRIGHT, _ = upright_picture()
DEFAULT = 178_956_970


@pytest.mark.parametrize(
    ("marker", "payload"),
    [
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"ICC_PROFILE\0\x01\x05abc"),
        (0xE2, b"MPF\0garbage"),
        (0xED, b"Photoshop 3.0\x008BIM\x03"),
        (0xE2, b"FPXR\0"),
        (0xFE, b""),
        (0xE0, b"JFIF\0\x01"),
        (0xEE, b"Adobe"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_segments_of_jpeg_files_are_passed_over(tmp_path, marker, payload):
    (tmp_path / "a.jpg").write_bytes(with_jpeg_segment(UPRIGHT, marker, payload))
    _expect_upright(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"iCCP", b"n\0\x07abc"),
        png_chunk(b"iCCP", b"n\0\0abc"),
        png_chunk(b"tEXt", b"a\0b", crc=7),
        png_chunk(b"pHYs", b"ab"),
        png_chunk(b"gAMA", b""),
        png_chunk(b"zTXt", b"a\0\x05x"),
        png_chunk(b"iTXt", b"a"),
        png_chunk(b"eXIf", b"II"),
        png_chunk(b"acTL", b"1"),
        png_chunk(b"tRNS", b""),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_chunks_of_png_files_are_passed_over(tmp_path, chunk):
    (tmp_path / "a.png").write_bytes(with_png_chunk(UPRIGHT, chunk))
    _expect_upright(tmp_path / "a.png")


@pytest.mark.parametrize("kind", [b"\x02\0\x04\0\0\0abc\0", b"\x63\0\xff\xff\xff\x7fabcd"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_tags_of_tiff_files_are_passed_over(tmp_path, kind):
    UPRIGHT.save(tmp_path / "a.tif", dpi=(72, 72))
    content = (tmp_path / "a.tif").read_bytes()
    for tag in (b"\x1a\x01", b"\x1b\x01"):  # XResolution and YResolution
        place = content.index(tag + b"\x05\0")
        content = content[: place + 2] + kind + content[place + 12 :]
    (tmp_path / "a.tif").write_bytes(content)
    _expect_upright(tmp_path / "a.tif")


def _expect_upright(path):
    assert np.abs(np.asarray(load_image(path), int) - np.asarray(UPRIGHT, int)).mean() < 6
    assert image_size(path) == UPRIGHT.size


@pytest.mark.parametrize("error", [RuntimeError("x"), NotImplementedError(), TypeError("y")])
def test_whatever_a_decoder_raises_names_the_picture(tmp_path, monkeypatch, error):
    def fail(self):
        raise error

    UPRIGHT.save(tmp_path / "a.bmp")
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(UserError, match=r"a\.bmp is damaged: \w+"):
        load_image(tmp_path / "a.bmp")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), "cannot be read: Permission denied"),
        (MemoryError(), "needs more memory than there is"),
    ],
)
def test_files_that_the_system_refuses_are_not_called_damaged(
    tmp_path, monkeypatch, error, message
):
    def fail(*args, **options):
        raise error

    UPRIGHT.save(tmp_path / "a.bmp")
    monkeypatch.setattr(Image, "open", fail)
    for read in (load_image, image_size):
        with pytest.raises(UserError, match=rf"a\.bmp {message}"):
            read(tmp_path / "a.bmp")


def test_folders_and_formats_that_are_not_read_are_named(tmp_path):
    with pytest.raises(UserError, match="is no file but a folder or a device"):
        load_image(tmp_path)
    UPRIGHT.save(tmp_path / "a.ico")
    UPRIGHT.save(tmp_path / "a.eps")
    (tmp_path / "a.svg").write_text("<svg/>")
    for name in ("a.ico", "a.eps", "a.svg"):
        with pytest.raises(UserError, match=f"{name} is not an image that Pillow can read"):
            load_image(tmp_path / name)


def test_headers_of_huge_pictures_are_named_with_the_way_out(tmp_path):
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(100_000, 100_000))
    for read in (load_image, image_size, lambda path: load_mask(path, name=str(path))):
        with pytest.raises(UserError) as error:
            read(path)
        message = str(error.value)
        assert message.startswith(f"{path} is 100000x100000 pixels, 10,000,000,000 in all")
        assert "set data.max_pixels=10000000000 (detect: --max-pixels 10000000000)" in message


def test_pillows_own_limit_does_not_count_and_stays(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name in ("a.png", "a.tif", "a.gif", "a.webp"):
        UPRIGHT.save(tmp_path / name)
        threads = [threading.Thread(target=load_image, args=(tmp_path / name,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert load_image(tmp_path / name).size == UPRIGHT.size
        with pytest.raises(UserError, match="40x20 pixels, 800 in all"):
            load_image(tmp_path / name, max_pixels=799)
    assert Image.MAX_IMAGE_PIXELS == 100
    assert not recwarn.list


@pytest.mark.parametrize("form", ["yolo", "pennfudan", "coco", "csv"])
def test_check_names_pictures_above_the_limit(tmp_path, capsys, form):
    huge = png_header(100_000, 100_000)
    for part in ("images/train", "labels/train", "PNGImages", "PedMasks", "data"):
        (tmp_path / part).mkdir(parents=True)
    places = {
        "yolo": ["images/train/huge.png"],
        "pennfudan": ["PNGImages/huge.png", "PedMasks/huge_mask.png"],
        "coco": ["data/huge.png"],
        "csv": ["data/huge.png"],
    }
    for place in places[form]:
        (tmp_path / place).write_bytes(huge)
    (tmp_path / "labels/train/huge.txt").write_text("0 .5 .5 .1 .1\n")
    (tmp_path / "train.csv").write_text("filename,xmin,ymin,xmax,ymax,class\nhuge.png,1,1,9,9,a\n")
    (tmp_path / "train.json").write_text(
        '{"images": [{"id": 1, "file_name": "huge.png"}], "categories": [{"id": 1, "name": "a"}],'
        '"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8]}]}'
    )
    options = ["data.train_images=data"] if form in ("csv", "coco") else []
    assert main(["check", str(tmp_path), "--format", form, *options]) == 2
    printed = "".join(capsys.readouterr())
    assert "huge" in printed
    assert "100000x100000 pixels" in printed
    assert "data.max_pixels=" in printed


def test_the_limit_is_a_key_of_the_recipe(tmp_path):
    for part in ("images/train", "labels/train"):
        (tmp_path / part).mkdir(parents=True)
    UPRIGHT.save(tmp_path / "images/train/a.png")
    (tmp_path / "labels/train/a.txt").write_text("0 .5 .5 .4 .5\n")
    assert DataConfig().max_pixels == DEFAULT
    assert len(open_split(DataConfig(format="yolo", max_pixels=800), tmp_path, "train")) == 1
    with pytest.raises(UserError, match="40x20 pixels, 800 in all"):
        open_split(DataConfig(format="yolo", max_pixels=799), tmp_path, "train")


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (60000, 1), (3, 4000)])
def test_thin_pictures_are_read(tmp_path, size):
    Image.new("RGB", size, (9, 9, 9)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").size == image_size(tmp_path / "a.png") == size


def test_no_picture_is_passed_over_for_its_name(tmp_path):
    names = {
        **{f"a{suffix}": "JPEG" for suffix in (".jpg", ".JPE", ".jfif", ".JFIF", "", ".jpg_large")},
        **{"b.gif": "GIF", "b.Avif": "AVIF", "b.apng": "PNG", "b.pnm": "PPM", "b.dat": "WEBP"},
    }
    for name, form in names.items():
        UPRIGHT.save(tmp_path / name, form)
    for name in ("raw.CR2", "phone.heic", "scan.dcm", "drawing.svg"):
        (tmp_path / name).write_bytes(b"no picture that is read")
    for name in ("notes.txt", "labels.xml", "Makefile", ".DS_Store", "._a.jpg", "b.bin"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7 no picture")
    (tmp_path / "__MACOSX").mkdir()
    UPRIGHT.save(tmp_path / "__MACOSX" / "c.jpg")
    found = {path.name for path, _ in find_images([tmp_path])}
    assert found == {*names, "raw.CR2", "phone.heic", "scan.dcm", "drawing.svg"}
    for name in names:
        assert load_image(tmp_path / name).size == UPRIGHT.size
    with pytest.raises(UserError, match=r"raw\.CR2 is not an image"):
        load_image(tmp_path / "raw.CR2")
    assert not is_picture(tmp_path / "gone.jpg")


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    def refuse(folder, onerror):
        onerror(PermissionError(13, "Permission denied", str(folder)))
        return []

    monkeypatch.setattr("rcnn_ext.data.images.finding.os.walk", refuse)
    with pytest.raises(UserError, match="cannot read the folder .*: Permission denied"):
        find_images([tmp_path])


def test_phones_pictures_say_what_they_need(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(UserError, match=r"a\.heic is a HEIC picture, which needs pillow-heif"):
        load_image(tmp_path / "a.heic")
