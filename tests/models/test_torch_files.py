"""Files of torch.save that cannot be read are named in our words."""

from __future__ import annotations

import pickle

import pytest
import torch

from rcnn_ext.errors import UserError
from rcnn_ext.models.torch_files import read_torch_file


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def cut(path):
    torch.save({"a": torch.rand(100)}, path)
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_text("101"), "it is no file of torch.save"),
        (lambda path: path.write_bytes(b"\x80\x02garbage"), "it is no file of torch.save"),
        (cut, "it is no whole archive of torch.save"),
        (lambda path: torch.save(Touch(path.with_name("touched")), path), "could run code"),
        (
            lambda path: path.write_bytes(pickle.dumps(Touch(path.with_name("touched")))),
            "is damaged",
        ),
    ],
    ids=["empty", "text", "bytes", "cut", "code", "pickled code"],
)
def test_what_is_no_checkpoint_is_named_without_pytorchs_advice(tmp_path, write, reason):
    path = tmp_path / "a.ckpt"
    write(path)
    with pytest.raises(UserError, match=reason) as error:
        read_torch_file(path)
    message = str(error.value)
    assert message.startswith(f"{path} is not a checkpoint, or is damaged: ")
    assert "weights_only" not in message
    assert "\n" not in message
    assert not (tmp_path / "touched").exists()


def test_missing_files_and_folders_are_named(tmp_path):
    for path in (tmp_path, tmp_path / "missing.ckpt"):
        with pytest.raises(UserError, match=f"cannot read {path}: "):
            read_torch_file(path)
