from __future__ import annotations

import time

import pytest

pytest.importorskip("lxml", reason="lxml comes with the extra train")

from rcnn_ext.data.formats.safe_xml import XmlError, read_xml, text_of
from rcnn_ext.errors import UserError


@pytest.fixture
def parse(tmp_path):
    def parse(content, encoding=None):
        path = tmp_path / "a.xml"
        path.write_bytes(content)
        return read_xml(path, encoding)

    return parse


def xml(name, declared=None):
    first = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
    return f"{first}<annotation><name>{name}</name></annotation>"


@pytest.mark.parametrize(
    ("declared", "encoding", "name"),
    [
        (None, "utf-8", "猫"),
        (None, "utf-8-sig", "猫"),
        (None, "utf-16", "猫"),
        (None, "utf-16-le", "猫"),
        (None, "utf-16-be", "猫"),
        ("utf-16", "utf-16", "猫"),
        ("utf-16", "utf-16-le", "猫"),
        ("utf-8", "utf-16", "猫"),
        ("utf-16", "utf-8", "猫"),  # As Windows' programs write it.
        ("gbk", "gbk", "狗狗"),
        ("GB2312", "gbk", "狗狗"),
        ("shift_jis", "shift_jis", "犬"),
        ("windows-1251", "cp1251", "кот"),
        ("latin-1", "latin-1", "Bär"),  # Python's word for it.
        ("cp437", "cp437", "Bär"),
        ("utf-7", "utf-7", "猫"),
    ],
)
def test_every_stated_encoding_is_read(parse, declared, encoding, name):
    assert text_of(parse(xml(name, declared).encode(encoding)), "name") == name


@pytest.mark.parametrize("declared", [None, "utf-8"])
def test_an_encoding_may_be_named_outside_the_file(parse, declared):
    content = xml("狗狗", declared).encode("gbk")
    assert text_of(parse(content, "gbk"), "name") == "狗狗"
    with pytest.raises(XmlError, match=r"it is not UTF-8 text: .*data\.encoding=NAME"):
        parse(content)


@pytest.mark.parametrize("declared", ["klingon", "rot13", "hex", "undefined"])
def test_an_unknown_encoding_is_named(parse, declared):
    with pytest.raises(XmlError, match=f"encoding '{declared}' is unknown: save it as UTF-8"):
        parse(xml("猫", declared).encode())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<a>" * 100_000 + b"</a>" * 100_000, "nested more deeply than any annotation"),
        (b"<a>" + b"x" * 11_000_000 + b"</a>", "a text or a name of 10 MB or more"),
        (b"<a>\0</a>", "not valid XML: Invalid character"),
        (b"hello", "not valid XML: Start tag expected"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "refused: it declares entities"),
        (
            b'<!DOCTYPE a [<!ENTITY b "cc"><!ENTITY d "&b;&b;&b;&b;">]><a>&d;</a>',
            "refused: it declares entities",
        ),
    ],
)
def test_what_is_no_annotation_is_refused_at_once(parse, content, message):
    before = time.process_time()
    with pytest.raises(XmlError, match=message) as caught:
        parse(content)
    assert "XML_PARSE_HUGE" not in str(caught.value)
    assert time.process_time() - before < 5


def test_text_with_many_entities_is_read_in_linear_time(parse):
    before = time.process_time()
    node = parse(b"<annotation><name>" + b"A&amp;" * 1_000_000 + b"</name></annotation>")
    assert len(text_of(node, "name")) == 2_000_000
    assert time.process_time() - before < 5


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.xml: No such file"):
        read_xml(tmp_path / "none.xml")
