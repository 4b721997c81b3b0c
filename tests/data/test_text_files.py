from __future__ import annotations

import os

import pytest

from rcnn_ext.config.data import DataConfig
from rcnn_ext.data.text_files import read_lines, read_text
from rcnn_ext.errors import UserError

UNICODE = (
    *("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"),
    *("utf-32", "utf-32-le", "utf-32-be"),
)


@pytest.mark.parametrize("encoding", UNICODE)
@pytest.mark.parametrize("text", ["cat\ndog\n", "é\n", "猫\r\n狗\r\n", "кот 🐈\n", ""])
def test_every_encoding_of_unicode_with_and_without_a_mark(tmp_path, encoding, text):
    path = tmp_path / "classes.txt"
    path.write_bytes(text.encode(encoding))
    assert read_text(path) == text
    assert read_lines(path) == text.splitlines()


def test_lines_end_only_where_files_have_ends(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a\u2028b.jpg\rc\x0cd.jpg\r\n\ne.jpg", newline="")
    assert read_lines(path) == ["a\u2028b.jpg", "c\x0cd.jpg", "", "e.jpg"]


def test_other_encodings_are_stated_or_named_with_the_byte(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("cat\n狗\n".encode("gbk"))
    assert read_lines(path, "gbk") == ["cat", "狗"]
    message = r"classes\.txt:2: byte 0xb9 at offset 4 is not UTF-8 .*data\.encoding=NAME"
    with pytest.raises(UserError, match=message):
        read_text(path)
    with pytest.raises(UserError, match=r"is not ascii text, which data\.encoding says"):
        read_text(path, "ascii")
    # The mark of a file counts more than what the recipe says of all.
    path.write_bytes("狗\n".encode("utf-8-sig"))
    assert read_lines(path, "gbk") == ["狗"]


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="cannot read .*nowhere: No such file"):
        read_text(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(UserError, match="is not a file"):
            read_text(tmp_path / name)


def test_names_of_encodings():
    for name in ("gbk", "cp1252", "utf-16", None):
        assert DataConfig(encoding=name).encoding == name
    for name in ("base64", "rot13", "nonsense", ""):
        with pytest.raises(ValueError, match="encoding must be null or a name"):
            DataConfig(encoding=name)
