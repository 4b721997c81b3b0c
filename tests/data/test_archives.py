"""Archives in place of a data folder."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tarfile
import zipfile

import pytest

from rcnn_ext.cli import main
from rcnn_ext.data import DataConfig, archives, open_split
from rcnn_ext.data.archives import unpacked
from rcnn_ext.errors import UserError
from tests.conftest import TINY
from tests.helpers import layouts, tool_layouts

SUFFIXES = {".zip": "zip", ".tar": "tar", ".tar.gz": "gztar", ".tgz": "gztar", ".tar.xz": "xztar"}


def archive_of(folder, path):
    """Write an archive with the content of a folder."""
    suffix = next(suffix for suffix in SUFFIXES if path.name.endswith(suffix))
    made = shutil.make_archive(str(path.with_name("made")), SUFFIXES[suffix], folder)
    os.replace(made, path)
    return path


def zip_with(path, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


def tar_with(path, *members):
    with tarfile.open(path, "w") as file:
        for member, content in members:
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_is_a_data_folder(tmp_path, suffix):
    tool_layouts.labelme(tmp_path / "top" / "animals")
    archive = archive_of(tmp_path / "top", tmp_path / f"data{suffix}")
    found = open_split(DataConfig(), archive, "train")
    assert len(found) == layouts.COUNT
    assert unpacked(archive) == tmp_path / f"data{suffix}.unpacked" / "animals"


def test_check_and_train_take_an_archive(tmp_path, capsys, one_thread):
    pytest.importorskip("lightning", reason="lightning comes with the extra train")
    tool_layouts.createml_labelimg(tmp_path / "data")
    archive = archive_of(tmp_path / "data", tmp_path / "data.zip")
    assert main(["check", str(archive), "--strict"]) == 0
    said = capsys.readouterr().out
    assert f"{archive}: unpacked to {archive}.unpacked" in said
    assert "format createml" in said
    arguments = ["faster_rcnn_synthetic", "--data", str(archive), "--out", str(tmp_path / "out")]
    assert main(["train", *arguments, "--max-steps", "1", *TINY, "data.format=auto"]) == 0


def test_an_unchanged_archive_is_unpacked_once(tmp_path, monkeypatch):
    archive = zip_with(tmp_path / "data.zip", a="1", b="2")
    folder = unpacked(archive)
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == ["a", "b"]
    (folder / "a").write_text("changed by hand")
    assert (unpacked(archive) / "a").read_text() == "changed by hand"
    zip_with(archive, a="another", c="3")
    assert (unpacked(archive) / "a").read_text() == "another"
    assert not (folder / "b").exists()


def test_where_archives_go_can_be_named(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        zip_with(tmp_path / name / "data.zip", a=name, b="")
    cache = str(tmp_path / "cache")
    found = [unpacked(tmp_path / name / "data.zip", cache) for name in ("one", "two")]
    assert [(folder / "a").read_text() for folder in found] == ["one", "two"]
    assert {folder.parent for folder in found} == {tmp_path / "cache"}


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
    archive = zip_with(tmp_path / "data.zip", a="1")
    (tmp_path / "data.zip.unpacked").mkdir()
    (tmp_path / "data.zip.unpacked" / "mine").write_text("")
    with pytest.raises(UserError, match=r"holds something else: .*data\.unpack_to"):
        unpacked(archive)
    assert (tmp_path / "data.zip.unpacked" / "mine").exists()


@pytest.mark.parametrize(
    "name", ["../out", "/out", "a/../../out", "..\\out", "C:\\out", "a/..", "\\\\host\\out"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_entries_that_lead_out_are_refused(tmp_path, name, kind):
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / f"data.{kind}"
    if kind == "zip":
        zip_with(path, **{"fine": "1", name: "2"})
    else:
        tar_with(path, (member("fine"), b"1"), (member(name), b"2"))
    with pytest.raises(UserError, match=r"has the entry .* leads out of the folder"):
        unpacked(path)
    assert [p.name for p in folder.iterdir()] == [path.name]
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("link", ["/etc/passwd", "../../secret", "nowhere", "."])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, "zip"])
def test_links_out_of_an_archive_are_refused(tmp_path, link, kind):
    (tmp_path / "secret").write_text("x")
    path = tmp_path / ("data.zip" if kind == "zip" else "data.tar")
    if kind == "zip":
        entry = zipfile.ZipInfo("a/b")
        entry.external_attr = 0o120777 << 16
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(entry, link)
    else:
        tar_with(path, (member("a/b", kind, link), b""))
    with pytest.raises(UserError, match="is a link to|leads out of the folder"):
        unpacked(path)
    assert not path.with_name(f"{path.name}.unpacked").exists()


def test_links_within_an_archive_become_files(tmp_path):
    path = tar_with(
        tmp_path / "data.tar",
        (member("images/a"), b"pixels"),
        (member("train/a", tarfile.SYMTYPE, "../images/a"), b""),
        (member("val/a", tarfile.LNKTYPE, "images/a"), b""),
    )
    folder = unpacked(path)
    for name in ("train/a", "val/a"):
        assert (folder / name).read_bytes() == b"pixels"
        assert not (folder / name).is_symlink()


def test_devices_are_refused(tmp_path):
    path = tar_with(tmp_path / "data.tar", (member("tty", tarfile.CHRTYPE), b""))
    with pytest.raises(UserError, match="'tty', which is neither a file nor a folder"):
        unpacked(path)


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_files_made_to_fill_a_disk_are_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(archives, "_FREE_BYTES", 1 << 16)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "zeros").write_bytes(bytes(4 << 20))
    archive = archive_of(tmp_path / "data", tmp_path / f"bomb{suffix}")
    with pytest.raises(UserError, match=r"unpacks to more than 0\.\d GB .*made to fill a disk"):
        unpacked(archive)
    assert not archive.with_name(f"{archive.name}.unpacked").exists()


def test_a_size_that_lies_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_FREE_BYTES", 1 << 16)
    path = zip_with(tmp_path / "data.zip", zeros=bytes(4 << 20))
    content = path.read_bytes()
    at = content.rindex(b"PK\x01\x02") + 24
    path.write_bytes(content[:at] + (100).to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(UserError, match="is damaged"):
        unpacked(path)


@pytest.mark.parametrize("cut", [0.3, 0.9])
@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.xz"])
def test_a_damaged_archive_is_named(tmp_path, suffix, cut):
    layouts.pictures(tmp_path / "data")
    archive = archive_of(tmp_path / "data", tmp_path / f"data{suffix}")
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(UserError, match=r"data\.\S+ is damaged, or no archive"):
        unpacked(archive)
    assert not archive.with_name(f"{archive.name}.unpacked").exists()


def test_bytes_that_are_no_archive_are_named(tmp_path):
    for name in ("a.zip", "b.tar", "c.tgz", "d.tar.bz2"):
        (tmp_path / name).write_bytes(b"some text that is no archive" * 50)
        with pytest.raises(UserError, match=f"{name} is damaged, or no archive"):
            unpacked(tmp_path / name)
        (tmp_path / name).write_bytes(b"")
        if name.endswith(".zip"):
            with pytest.raises(UserError, match=f"{name} is damaged, or no archive"):
                unpacked(tmp_path / name)


def test_an_encrypted_archive_is_named(tmp_path):
    path = zip_with(tmp_path / "data.zip", a="1")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    content[6] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"data\.zip is encrypted: unpack it yourself"):
        unpacked(path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_errors_of_the_disk_are_named(tmp_path, monkeypatch, code):
    path = zip_with(tmp_path / "data.zip", a="1")

    def fail(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(archives, "write_json", fail)
    with pytest.raises(UserError, match=f"cannot unpack .*data.zip.unpacked: {os.strerror(code)}"):
        unpacked(path)
    assert not (tmp_path / "data.zip.unpacked").exists()


def test_a_disk_too_small_is_named_before(tmp_path, monkeypatch):
    path = zip_with(tmp_path / "data.zip", a="1" * 1000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(UserError, match=r"needs 0\.0 GB when unpacked.*data\.unpack_to"):
        unpacked(path)


def test_what_macos_adds_is_left_out(tmp_path):
    junk = {"__MACOSX/d/._a.png": "x", "d/.DS_Store": "x", "d/._a.png": "x"}
    folder = unpacked(zip_with(tmp_path / "data.zip", **{"d/a.png": "1", **junk}))
    assert folder.name == "d"
    assert [p.name for p in folder.iterdir()] == ["a.png"]


def test_folders_with_a_meaning_are_not_entered(tmp_path):
    folder = unpacked(zip_with(tmp_path / "data.zip", **{"set/train/a.png": "1"}))
    assert folder == tmp_path / "data.zip.unpacked" / "set"


def test_names_in_utf8_that_do_not_say_so(tmp_path):
    path = zip_with(tmp_path / "data.zip", **{"猫.png": "1", "b.png": "2"})
    content = path.read_bytes()
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.index(mark) + at
        content = content[:start] + b"\0\0" + content[start + 2 :]
    path.write_bytes(content)
    assert (unpacked(path) / "猫.png").read_text() == "1"


def test_other_files_are_named(tmp_path, capsys):
    for name in ("data.rar", "train.json"):
        (tmp_path / name).write_text("{}")
        assert main(["check", str(tmp_path / name)]) == 2
        assert "is a file: name the data folder, or an archive" in capsys.readouterr().err
    inner = tmp_path / "folder"
    inner.mkdir()
    zip_with(inner / "images.zip", a="1")
    assert main(["check", str(inner)]) == 2
    assert "name " + str(inner / "images.zip") in capsys.readouterr().err


def test_tfrecord_is_named_with_what_to_export_instead(tmp_path, capsys):
    for name in ("train/cats.tfrecord", "data.record-00000-of-00002"):
        path = tmp_path / "x" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\0")
        assert main(["check", str(tmp_path / "x")]) == 2
        said = capsys.readouterr().err
        assert f"{path} is a TFRecord file" in said
        assert "export the data as COCO JSON" in said
        shutil.rmtree(tmp_path / "x")
