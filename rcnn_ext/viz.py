"""Pictures: boxes on images, contact sheets, loss and precision-recall curves.

Drawing on images needs Pillow only; the curves need matplotlib, which comes with the extra
``train``. Names in any script are written by the fonts of :mod:`rcnn_ext.fonts`.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from rcnn_ext import fonts
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.files import replacing

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]  # (x1, y1, x2, y2), pixels

# Tags of objects at one place are stacked; more than these would hide the picture.
_MAX_TAG_PLACES = 5

_MASK_OPACITY = 0.45

# Minimum longer side, in pixels, of pictures with legible text.
MIN_DRAWN_SIZE = 384

_CAPTION = 14  # pixels
_GOLDEN_RATIO = 0.618033988749895
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


def class_color(label: int) -> Color:
    """Return the color of a label; colors of neighboring labels differ most.

    Args:
        label: A label, from 1.

    Returns:
        (red, green, blue), each from 0 to 255.
    """
    hue = (label * _GOLDEN_RATIO) % 1
    # Saturation alternates too, or hues would come close after a dozen classes.
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.95, 0.65, 0.8)[label % 3], 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(
    picture: Image.Image,
    boxes: Any,
    labels: Sequence[int],
    classes: ClassList,
    scores: Sequence[float] | None = None,
    min_size: int = MIN_DRAWN_SIZE,
    masks: np.ndarray | None = None,
) -> Image.Image:
    """Draw boxes with the names of their classes, and masks, on a copy of a picture.

    Args:
        picture: The image; small ones are enlarged so that the text is legible.
        boxes: [N, 4] (x1, y1, x2, y2), pixels of ``picture``; a tensor, array or nested list.
        labels: [N], from 1.
        classes: The names of the labels.
        scores: [N], from 0 to 1; None for ground truth. The best are drawn last, on top.
        min_size: Minimum longer side; smaller pictures are enlarged by an integer factor.
        masks: bool [N, H, W], or None.

    Returns:
        The enlarged copy, RGB.
    """
    scale = max(1, math.ceil(min_size / max(picture.size)))
    canvas = picture.convert("RGB")
    if masks is not None:
        canvas = _tinted(canvas, masks, labels)
    canvas = canvas.resize((picture.width * scale, picture.height * scale))
    pen = ImageDraw.Draw(canvas)
    width = max(2, round(max(canvas.size) / 300))
    text_size = max(11, round(max(canvas.size) / 42))
    rows = [[float(value) * scale for value in box] for box in boxes]
    order = range(len(rows)) if scores is None else np.argsort(np.asarray(scores), kind="stable")
    texts = []
    for i in (int(index) for index in order):
        color = class_color(int(labels[i]))
        name = classes.name(int(labels[i]))
        pen.rectangle(rows[i], outline=color, width=width)
        text = name if scores is None else f"{name} {float(scores[i]):.2f}"
        texts.append((rows[i], text, color))
    # After all boxes, so that no box crosses a name; the best first, so that it gets its place.
    taken: list[Box] = []
    for row, text, color in reversed(texts):
        line = fonts.Line(text, text_size)
        taken.append(_draw_tag(pen, canvas.size, row, line, color, taken))
    return canvas


def contact_sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int = 4,
    cell: int = 320,
) -> Image.Image:
    """Arrange pictures in a grid, each fitted into a square cell with its caption below.

    Args:
        pictures: One or more.
        captions: One per picture, or None.
        columns: Cells per row.
        cell: Side of a cell in pixels.

    Raises:
        ValueError: There are no pictures, or their number differs from that of the captions.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures but {len(captions)} captions")
    gap, text = 8, 0 if captions is None else 22
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new(
        "RGB", (columns * (cell + gap) + gap, rows * (cell + text + gap) + gap), _PAPER
    )
    pen = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x = gap + i % columns * (cell + gap)
        y = gap + i // columns * (cell + text + gap)
        factor = cell / max(picture.size)
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        sheet.paste(small, (x + (cell - size[0]) // 2, y + (cell - size[1]) // 2))
        if captions is not None:
            line = fonts.Line(captions[i], _CAPTION)
            left, _, right, _ = line.box
            base = y + cell + text / 2 + _CAPTION / 3
            line.draw(pen, x + (cell - left - right) / 2, base, _INK)
    return sheet


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture atomically, in the format of the suffix."""
    options: dict[str, Any] = {"quality": 92} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    with replacing(path) as temporary:
        picture.save(temporary, **options)


def plot_losses(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot the curves of a ``losses.csv``.

    Args:
        rows: Its rows, with ``step``, ``loss`` and the single losses.
        path: The picture to write.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    figure, axes = _new_plot("Training losses", "step", "loss")
    steps = [int(row["step"]) for row in rows]
    for name in (key for key in rows[0] if key.startswith("loss")):
        values = [float(row[name]) for row in rows]
        whole = name == "loss"
        axes.plot(
            steps,
            values,
            label="sum" if whole else name.removeprefix("loss_"),
            linewidth=2.2 if whole else 1.2,
            color="black" if whole else None,
            marker="." if len(rows) < 30 else None,
        )
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def plot_precision_recall(precision: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Plot precision over recall at IoU 0.5.

    Args:
        precision: [101, K] at recall 0, 0.01, ..., 1 per class; -1 for classes without
            objects, which are left out.
        names: [K] class names.
        path: The picture to write.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    with _plain_names(names) as labels:
        figure, axes = _new_plot("Precision and recall at IoU 0.5", "recall", "precision")
        recall = np.linspace(0, 1, len(precision))
        shown = [k for k in range(len(names)) if (precision[:, k] > -1).all()]
        for k in shown:
            color = [value / 255 for value in class_color(k + 1)]
            # Named curves of eighty classes could not be told apart.
            few = len(shown) <= 12
            # A blank before the name, since matplotlib leaves out names that begin with "_".
            label = f" {labels[k]} (AP50 {precision[:, k].mean():.2f})" if few else None
            axes.plot(recall, precision[:, k], color=color, label=label, alpha=1 if few else 0.35)
        if shown:
            mean = precision[:, shown].mean(axis=1)
            axes.plot(recall, mean, color="black", linewidth=2.2, label=f"mean ({mean.mean():.2f})")
            axes.legend(frameon=False, loc="lower left")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        with replacing(path) as temporary:
            figure.savefig(temporary)


def plot_confusion(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Plot a confusion matrix; colors are fractions of a row, which is a true class.

    Args:
        matrix: [K, K] counts, true classes in rows and predicted ones in columns.
        names: [K] class names.
        path: The picture to write.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    count = len(names)
    side = min(24.0, 3 + 0.45 * count)
    with _plain_names(names) as labels:
        figure, axes = _new_plot("Confusion matrix", "predicted", "true", (side + 1, side))
        rows = matrix.sum(axis=1, keepdims=True)
        fractions = matrix / np.maximum(rows, 1)
        axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
        small = {"fontsize": 8 if count <= 30 else 5}
        axes.set_xticks(range(count), labels, rotation=90, **small)
        axes.set_yticks(range(count), labels, **small)
        axes.grid(False)
        for row, column in np.argwhere(matrix > 0):
            color = "white" if fractions[row, column] > 0.6 else "black"
            axes.text(
                column,
                row,
                str(matrix[row, column]),
                ha="center",
                va="center",
                color=color,
                **small,
            )
        with replacing(path) as temporary:
            figure.savefig(temporary)


def _tinted(picture: Image.Image, masks: np.ndarray, labels: Sequence[int]) -> Image.Image:
    """Blend the color of each label into the pixels of its mask, bool [N, H, W]."""
    pixels = np.array(picture)
    for mask, label in zip(masks, labels, strict=True):
        color = np.array(class_color(int(label)))
        pixels[mask] = (pixels[mask] * (1 - _MASK_OPACITY) + color * _MASK_OPACITY).round()
    return Image.fromarray(pixels)


def _draw_tag(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: Sequence[float],
    line: fonts.Line,
    color: Color,
    taken: Sequence[Box],
) -> Box:
    """Write on a colored tag above the box or, where that is taken or outside, further down.

    Returns:
        The rectangle of the tag.
    """
    left, top, right, bottom = line.box
    width, height = right - left + 6, bottom - top + 6
    x = min(max(0.0, box[0]), max(0.0, size[0] - width))
    lowest = max(0.0, size[1] - height)
    places = [box[1] + height * i for i in range(-1, _MAX_TAG_PLACES)]
    tags = [(x, y, x + width, y + height) for y in places if 0 <= y <= lowest]
    free = (tag for tag in tags if not any(_overlap(tag, other) for other in taken))
    y = min(max(0.0, box[1]), lowest)
    tag = next(free, (x, y, x + width, y + height))
    pen.rectangle(tag, fill=color)
    # Perceived brightness, ITU-R BT.601.
    bright = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    line.draw(pen, tag[0] + 3 - left, tag[1] + 3 - top, _INK if bright else _PAPER)
    return tag


def _overlap(first: Box, second: Box) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )


@contextmanager
def _plain_names(names: Sequence[str]) -> Iterator[list[str]]:
    """Let matplotlib write names in any script as they are, while plots are made and saved.

    Yields:
        The names, in which characters that no font has are escaped.
    """
    import matplotlib
    from matplotlib import font_manager

    faces = fonts.plot_fonts()
    lays_out = tuple(int(part) for part in matplotlib.__version__.split(".")[:2]) >= (3, 11)
    families = dict.fromkeys(["DejaVu Sans"])
    added = {entry.fname for entry in font_manager.fontManager.ttflist}
    labels = []
    for name in names:
        parts = fonts.runs(name, faces)
        for _, face in parts:
            file = None if face is None else str(face.path)
            if file is not None and file not in added:
                font_manager.fontManager.addfont(file)
                added.add(file)
            if file is not None:
                families[font_manager.get_font(file).family_name] = None
        label = "".join(part for part, _ in parts)
        labels.append(label if lays_out else fonts.in_visual_order(label))
    # Dollar signs begin no formula.
    with matplotlib.rc_context({"font.family": list(families), "text.parse_math": False}):
        yield labels


def _new_plot(title: str, x: str, y: str, size: tuple[float, float] = (8, 5)) -> tuple[Any, Any]:
    # Not pyplot, which would choose a backend and keep every figure.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
