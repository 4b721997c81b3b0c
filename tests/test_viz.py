from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from rcnn_ext.data import ClassList
from rcnn_ext.viz import (
    class_color,
    contact_sheet,
    draw_boxes,
    plot_losses,
    plot_precision_recall,
    save_picture,
)

CLASSES = ClassList(("cat", "dog"), (1, 2))
GRAY = (90, 90, 90)


def gray(width, height):
    return Image.new("RGB", (width, height), GRAY)


def near(pixel, color):
    return max(abs(int(a) - int(b)) for a, b in zip(pixel, color, strict=True)) <= 2


def test_colors_of_classes_are_fixed_and_tell_neighbors_apart():
    colors = [class_color(label) for label in range(1, 91)]
    assert colors == [class_color(label) for label in range(1, 91)]
    assert len(set(colors)) == 90
    for first, second in zip(colors, colors[1:], strict=False):
        assert sum(abs(a - b) for a, b in zip(first, second, strict=True)) > 80


def test_boxes_are_drawn_where_they_are_and_in_the_color_of_their_class():
    picture = gray(400, 300)
    drawn = draw_boxes(picture, [[50, 60, 200, 250]], [2], CLASSES)
    assert drawn.size == (400, 300)
    pixels = np.asarray(drawn)
    for x, y in ((50, 150), (200, 150), (120, 250), (150, 60)):
        assert near(pixels[y, x], class_color(2)), (x, y)
    assert near(pixels[150, 120], GRAY), "the inside stays"
    assert near(pixels[280, 380], GRAY)
    assert np.asarray(picture).std() == 0, "the picture itself stays"


def test_small_pictures_are_enlarged_with_their_boxes():
    drawn = draw_boxes(gray(100, 50), [[10, 20, 60, 40]], [1], CLASSES)
    assert drawn.size == (400, 200)
    pixels = np.asarray(drawn)
    assert near(pixels[120, 40], class_color(1))
    assert near(pixels[120, 240], class_color(1))


@pytest.mark.parametrize("box", [[0, 0, 400, 300], [380, 0, 400, 10], [0, 290, 20, 300]])
def test_names_stay_inside_the_picture(box):
    """Whatever the box, as many pixels of the tag are visible as of one in the middle."""

    def tag(box):
        plain = ClassList((" ",), (1,))
        with_name = np.asarray(draw_boxes(gray(400, 300), [box], [1], ClassList(("hippo",), (1,))))
        without = np.asarray(draw_boxes(gray(400, 300), [box], [1], plain))
        return (with_name != without).any(axis=2)

    rows, columns = np.nonzero(tag(box))
    wanted_rows, wanted_columns = np.nonzero(tag([150, 150, 250, 200]))
    assert np.ptp(columns) >= np.ptp(wanted_columns) - 4
    assert np.ptp(rows) >= np.ptp(wanted_rows) - 4


def test_the_best_detection_is_drawn_on_top():
    boxes = [[50, 60, 200, 250], [50, 60, 200, 250]]
    for scores, label in (([0.9, 0.2], 1), ([0.2, 0.9], 2)):
        pixels = np.asarray(draw_boxes(gray(400, 300), boxes, [1, 2], CLASSES, scores))
        assert near(pixels[150, 50], class_color(label))


def test_names_of_boxes_on_each_other_are_stacked():
    """Every name keeps all its pixels: the more boxes, the more tags to be seen."""

    def tagged(count):
        boxes = [[100 + i, 100 + i, 300, 250] for i in range(count)]
        pixels = np.asarray(draw_boxes(gray(400, 300), boxes, [2] * count, CLASSES))
        return (pixels[:, 110:130] == class_color(2)).all(axis=2).any(axis=1).sum()

    heights = [tagged(count) for count in (1, 2, 3)]
    assert heights[1] > 1.6 * heights[0]
    assert heights[2] > 2.2 * heights[0]


def test_nothing_to_draw_gives_the_picture():
    drawn = draw_boxes(gray(400, 300), np.zeros((0, 4)), [], CLASSES, [])
    assert np.array_equal(np.asarray(drawn), np.asarray(gray(400, 300)))


def test_a_contact_sheet_shows_every_picture_whole():
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    shapes = [(100, 100), (200, 50), (50, 200), (10, 10), (400, 300)]
    sheet = contact_sheet(
        [Image.new("RGB", size, color) for size, color in zip(shapes, colors, strict=True)],
        captions=list("abcde"),
        columns=2,
        cell=100,
    )
    pixels = np.asarray(sheet).astype(int)
    assert pixels.shape == (3 * 130 + 8, 2 * 108 + 8, 3)
    for (width, height), color in zip(shapes, colors, strict=True):
        seen = (np.abs(pixels - color).max(axis=2) <= 2).sum()
        scale = 100 / max(width, height)
        assert seen == pytest.approx(width * height * scale * scale, rel=0.03)


def test_wrong_contact_sheets():
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])
    with pytest.raises(ValueError, match="1 pictures but 2 captions"):
        contact_sheet([gray(9, 9)], ["a", "b"])


def test_pictures_are_written_whole_or_not_at_all(tmp_path):
    save_picture(gray(9, 9), tmp_path / "deep" / "a.jpg")
    with Image.open(tmp_path / "deep" / "a.jpg") as saved:
        assert (saved.format, saved.size) == ("JPEG", (9, 9))
    with pytest.raises(ValueError, match="extension"):
        save_picture(gray(9, 9), tmp_path / "deep" / "a.nonsense")
    assert os.listdir(tmp_path / "deep") == ["a.jpg"]


def test_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra train")
    rows = [{"step": str(i), "lr": "0.1", "loss": f"{9 - i}", "loss_a": "1"} for i in range(5)]
    plot_losses(rows, tmp_path / "losses.png")
    precision = np.stack([np.linspace(1, 0, 101), np.full(101, -1.0)], axis=1)
    plot_precision_recall(precision, CLASSES.names, tmp_path / "curves.png")
    plot_precision_recall(np.full((101, 2), -1.0), CLASSES.names, tmp_path / "none.png")
    for name in ("losses.png", "curves.png", "none.png"):
        with Image.open(tmp_path / name) as plot:
            assert plot.width > 500
    with Image.open(tmp_path / "curves.png") as full, Image.open(tmp_path / "none.png") as empty:
        assert np.asarray(full).std() > np.asarray(empty).std()
