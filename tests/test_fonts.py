"""Text of any script on pictures: every name can be told from every other, on any machine."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from rcnn_ext import fonts, viz
from rcnn_ext.data import ClassList
from rcnn_ext.viz import contact_sheet, draw_boxes, plot_confusion, plot_precision_recall

NAMES = {
    "Latin": ("cat", "dog"),
    "Latin with accents": ("chèvre", "žába"),
    "Chinese": ("猫", "狗"),
    "Cyrillic": ("кот", "пёс"),
    "Greek": ("γάτα", "σκύλος"),
    "Arabic": ("قط", "كل"),
    "Hebrew": ("חתול", "כלב"),
    "Japanese": ("ねこ", "イヌ"),
    "Korean": ("고양이", "개"),
    "Thai": ("แมว", "หมา"),
    "Devanagari": ("बिल्ली", "कुत्ता"),
    "mixed": ("猫 cat قط", "狗 dog كل"),
    "signs": ("😀", "🐈"),
    "unassigned": ("\U000e1234", "\U000e1235"),
    "control characters": ("a\nb", "a\tb"),
    "invisible characters": ("a\u200bb", "ab"),
    "joiners in ASCII": ("a\u200db", "ab"),
    "lone surrogates": ("\ud800", "\ud801"),
}
EVERY = sorted({name for pair in NAMES.values() for name in pair})


def drawn(name):
    gray = Image.new("RGB", (500, 300), (90, 90, 90))
    return np.asarray(draw_boxes(gray, [[50, 60, 300, 250]], [1], ClassList((name,), (1,))))


def different(first, second):
    return (drawn(first) != drawn(second)).any()


@pytest.fixture(params=["all fonts", "Pillow's font alone", "no FreeType"])
def machine(request, monkeypatch):
    """Machines with more and fewer fonts."""
    if request.param == "Pillow's font alone":
        alone = fonts._Fonts(iter([fonts.Typeface(None)]))
        monkeypatch.setattr(fonts, "typefaces", lambda: alone)
    if request.param == "no FreeType":
        monkeypatch.setattr(fonts, "typefaces", lambda: fonts._Fonts(iter([])))
        monkeypatch.setattr(fonts, "_bitmap_font", lambda: ImageFont.load_default_imagefont())
    return request.param


@pytest.mark.parametrize("script", NAMES)
def test_names_of_a_script_differ(machine, script):
    assert different(*NAMES[script])


def test_all_names_differ(machine):
    pictures = {name: drawn(name) for name in EVERY}
    for (first, one), (second, other) in itertools.combinations(pictures.items(), 2):
        assert (one != other).any(), (first, second)


@pytest.mark.parametrize("script", NAMES)
def test_no_missing_glyph_is_drawn(script):
    """By the character maps in the files, which the package does not read."""
    ttlib = pytest.importorskip("fontTools.ttLib", reason="fontTools comes with matplotlib")
    for name in NAMES[script]:
        for part, face in fonts.runs(name):
            if face.path is None:
                assert all(" " <= character <= "\u2122" for character in part)
                continue
            with ttlib.TTFont(face.path, fontNumber=0, lazy=True) as file:
                characters = file.getBestCmap()
            missing = [one for one in part if ord(one) not in characters]
            assert not set(missing) - {"\u200d", "\u200c"}, (name, face.path)


def test_a_character_without_a_font_is_written_as_its_number():
    only = [fonts.Typeface(None)]
    assert fonts.runs("cat", only) == [("cat", only[0])]
    assert "".join(part for part, _ in fonts.runs("猫 2", only)) == "[U+732B] 2"
    assert "".join(part for part, _ in fonts.runs("a\r\nb", only)) == "a[U+000D][U+000A]b"
    assert fonts.escape("😀") == "[U+1F600]"
    assert fonts.runs("", only) == []
    assert fonts.runs("猫", [])[0] == ("[U+732B]", None)


def test_composed_and_decomposed_letters_are_the_same():
    assert not different("é", "e\u0301")


def test_letters_that_all_machines_with_matplotlib_have():
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra train")
    for script in ("Latin with accents", "Cyrillic", "Greek", "Arabic", "Hebrew"):
        for name in NAMES[script]:
            assert "".join(part for part, _ in fonts.runs(name)) == name


def test_letters_that_come_with_the_extra_fonts():
    pytest.importorskip("manimgx_fonts", reason="comes with the extra fonts")
    pytest.importorskip("noto_cjk_sans_jp_regular", reason="comes with the extra fonts")
    for script in ("Chinese", "Japanese", "Korean", "Thai", "Devanagari", "mixed"):
        for name in NAMES[script]:
            assert "".join(part for part, _ in fonts.runs(name)) == name


def dejavu():
    face = next(face for face in fonts.typefaces() if "DejaVuSans" in str(face.path))
    return Path(face.path)


def test_fonts_of_ones_own_come_first(tmp_path, monkeypatch):
    mine = tmp_path / "mine" / "Letters.ttf"
    mine.parent.mkdir()
    mine.write_bytes(dejavu().read_bytes())
    for value in (str(mine), str(mine.parent)):
        monkeypatch.setenv(fonts.VARIABLE, value)
        assert fonts.runs("cat кот")[0][1].path == mine
    monkeypatch.setenv(fonts.VARIABLE, f"{tmp_path / 'gone'}{fonts.os.pathsep}{mine}")
    with pytest.warns(UserWarning, match="gone does not exist"):
        assert fonts.runs("cat кот")[0][1].path == mine


def test_damaged_font_files_are_passed_over(tmp_path, monkeypatch):
    whole = dejavu().read_bytes()
    (tmp_path / "a.ttf").write_bytes(b"no font")
    (tmp_path / "b.otf").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "c.ttc").write_bytes(b"")
    monkeypatch.setenv(fonts.VARIABLE, str(tmp_path))
    assert different("кот", "пёс")
    assert "".join(part for part, _ in fonts.runs("кот")) == "кот"


def test_bold_slanted_and_sign_fonts_are_not_taken():
    names = [face.path.name.lower() for face in fonts.plot_fonts()]
    assert names
    assert not [name for name in names if "bold" in name or "oblique" in name or "stix" in name]


def test_the_layout_without_raqm_turns_words_around(monkeypatch):
    assert fonts.in_visual_order("חתול 2 cat") == "לותח 2 cat"
    assert fonts.in_visual_order("cat") == "cat"
    monkeypatch.setattr(fonts, "_layout", lambda: ImageFont.Layout.BASIC)
    for script in ("Arabic", "Hebrew", "mixed"):
        assert different(*NAMES[script])


@pytest.mark.parametrize("text", ["cat 0.93", "猫 0.93", "gÉ|_", "猫 cat قط"])
def test_the_box_of_a_line_holds_its_pixels(text):
    picture = Image.new("L", (400, 100))
    line = fonts.Line(text, 30)
    line.draw(ImageDraw.Draw(picture), 50, 60, 255)
    left, top, right, bottom = picture.getbbox()
    assert left >= 50 + line.box[0] - 1
    assert top >= 60 + line.box[1] - 1
    assert right <= 50 + line.box[2] + 1
    assert bottom <= 60 + line.box[3] + 1
    assert bottom - top > 15


def test_captions_are_in_any_script_too():
    pictures = [Image.new("RGB", (50, 50))]
    sheets = [np.asarray(contact_sheet(pictures, [name], cell=200)) for name in EVERY]
    for one, other in itertools.combinations(sheets, 2):
        assert (one != other).any()


def test_plots_have_names_in_any_script_and_without_formulas(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra train")
    names = [*EVERY, "$a$", "_b", "$\\frac$"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of missing glyphs.
        plot_confusion(np.eye(len(names), dtype=int), names, tmp_path / "all.png")
        plot_precision_recall(np.ones((101, 12)), names[-12:], tmp_path / "some.png")
        pixels = {}
        for name in ("猫", "狗", "قط", "_b", "c"):
            path = tmp_path / "one.png"
            plot_precision_recall(np.ones((101, 1)), [name], path)
            pixels[name] = np.asarray(Image.open(path)).tobytes()
    assert len(set(pixels.values())) == len(pixels)
    with viz._plain_names(["$a$", "\U000e1234"]) as labels:
        assert labels == ["$a$", "[U+E1234]"]
