from __future__ import annotations

import errno
import os

import pytest

from rcnn_ext.errors import UserError
from rcnn_ext.files import (
    make_folder,
    read_json,
    replacing,
    replacing_folder,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def fail_half_way():
        with replacing(path) as temporary:
            temporary.write_text("half of")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.skipif(os.name != "posix", reason="modes are a thing of POSIX")
def test_the_umask_is_heeded_and_never_changed(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", None)
        write_text(tmp_path / "a.txt", "a")
        with replacing_folder(tmp_path / "b"):
            pass
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o750


def test_a_written_file_has_ordinary_permissions_and_its_suffix_while_written(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    with replacing(tmp_path / "deep" / "b.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_text("x")
    assert (tmp_path / "deep" / "b.png").stat().st_mode == plain.stat().st_mode


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "set"

    def fail_half_way():
        with replacing_folder(target) as temporary:
            (temporary / "part").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert os.listdir(tmp_path) == []
    target.mkdir()  # An empty folder is replaced.
    with replacing_folder(target) as temporary:
        (temporary / "part").write_text("x")
    assert os.listdir(target) == ["part"]
    assert os.listdir(tmp_path) == ["set"]


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", [float("nan")])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b": }', "line 2, column 7"),
        (b"\xff\xfe\xfa", "not valid JSON"),
    ],
)
def test_bad_json_is_named_with_its_place(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_json(path)
    assert str(path) in str(error.value)


def test_missing_files_and_impossible_folders_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"gone\.json does not exist"):
        read_json(tmp_path / "gone.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        make_folder(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": "\xe9"}', "byte 0xe9 at offset 7 is not utf-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5000, "too many digits"),
    ],
)
def test_json_that_python_cannot_read_is_named(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(path)


def test_names_may_be_as_long_as_a_file_system_takes(tmp_path):
    path = tmp_path / f"{'é' * 125}.txt"
    write_text(path, "x")
    assert os.listdir(tmp_path) == [path.name]
    too_long = tmp_path / f"{'x' * 256}.txt"
    with pytest.raises(UserError, match="cannot write .*xxx[.]txt: File name too long"):
        write_text(too_long, "x")
    assert os.listdir(tmp_path) == [path.name]


def test_a_write_that_fails_names_the_file_and_not_the_temporary_one(tmp_path):
    path = tmp_path / "a.json"

    def fail(name):
        with replacing(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    with pytest.raises(UserError, match=rf"cannot write {path}: No space left on device"):
        fail(None)
    with pytest.raises(OSError, match="other"):
        fail("other")
