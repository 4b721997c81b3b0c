from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.data import find_images, image_size, load_image
from rcnn_ext.data.images import list_images
from rcnn_ext.errors import UserError

_ORIENTATION = 0x0112


def turned(path, size, orientation):
    """A JPEG that says it has to be turned; its stored top left quarter is white."""
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), (0, 0, size[0] // 2, size[1] // 2))
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    picture.save(path, exif=exif, quality=95)
    return path


def test_photos_are_turned_upright(tmp_path):
    path = turned(tmp_path / "a.jpg", (40, 20), 6)  # 6: turn a quarter clockwise.
    picture = load_image(path)
    assert picture.size == (20, 40)
    assert image_size(path) == (20, 40)
    pixels = np.asarray(picture).mean(axis=2)
    assert pixels[5, 15] > 200, "the stored top left comes to the top right"
    assert pixels[5, 5] < 50
    assert load_image(path, (20, 40)).size == (20, 40)


def test_annotations_of_the_stored_picture_get_the_stored_picture(tmp_path):
    path = turned(tmp_path / "a.jpg", (40, 20), 6)
    pixels = np.asarray(load_image(path, (40, 20))).mean(axis=2)
    assert pixels.shape == (20, 40)
    assert pixels[5, 5] > 200


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I", "F"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / "a.tif"
    Image.new("RGB", (6, 4), (255, 255, 255)).convert(
        {"LA": "L", "I": "L", "F": "L"}.get(mode, mode)
    ).convert(mode).save(path)
    picture = load_image(path)
    assert (picture.mode, picture.size) == ("RGB", (6, 4))
    assert np.asarray(picture).min() == 255


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path):
    values = np.array([[0, 16448, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.asarray(load_image(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 64, 128, 255]


def test_damaged_missing_and_foreign_files_are_named(tmp_path):
    Image.effect_noise((64, 64), 80).convert("RGB").save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.jpg").write_text("not a picture")
    for name, message in (
        ("half.jpg", "is damaged"),
        ("text.jpg", "is not an image"),
        ("gone.jpg", "does not exist"),
    ):
        with pytest.raises(UserError, match=message) as error:
            load_image(tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(UserError, match="64x64 pixels, but its annotations say 64x32"):
        load_image(tmp_path / "whole.jpg", (64, 32))
    with pytest.raises(UserError, match="is not an image"):
        image_size(tmp_path / "text.jpg")


def test_images_are_found_in_order_and_once(tmp_path):
    for name in ("b.JPG", "a.png", "deep/c.jpeg", "notes.txt"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    folder = tmp_path / "in"
    found = find_images([folder, folder / "a.png"])
    assert [name.as_posix() for _, name in found] == ["a.png", "b.JPG", "deep/c.jpeg"]
    assert [path for path, name in found] == [folder / name for _, name in found]
    assert find_images([folder / "deep" / "c.jpeg"]) == [
        (folder / "deep" / "c.jpeg", Path("c.jpeg"))
    ]


def test_sources_without_images_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone does not exist"):
        find_images([tmp_path / "gone"])
    with pytest.raises(UserError, match=r"no images in .*\.jpg"):
        find_images([tmp_path])


def test_patterns_and_frames_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 100):
        Image.new("RGB", (2, 2)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "frame1.txt").write_text("")
    expected = ["frame9.png", "frame10.png", "frame100.png"]
    for source in (tmp_path, tmp_path / "frame*", tmp_path.parent / "**" / tmp_path.name / "*.png"):
        assert [path.name for path, _ in find_images([source])] == expected
    with pytest.raises(UserError, match="no images in"):
        find_images([tmp_path / "*.gif"])


def test_numbers_in_names_sort_by_value_before_text(tmp_path):
    names = ["2.png", "02.png", "10.png", "a.png", "a1.png", "a01b.png", "a²2.png", "²2.png"]
    for name in names:
        (tmp_path / name).touch()
    found = list_images([tmp_path])
    expected = ["02.png", "2.png", "10.png", "a01b.png", "a1.png", "a.png", "a²2.png", "²2.png"]
    assert [found.name(index) for index in range(len(found))] == expected
    rest = found.without(lambda path: "²" in path)
    assert [path.name for path, _ in rest] == expected[:6]
    assert rest[1:3] == [(tmp_path / name, Path(name)) for name in expected[1:3]]
