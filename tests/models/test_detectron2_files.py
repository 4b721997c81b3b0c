"""Files of detectron2's checkpoints, and those that are refused."""

from __future__ import annotations

import collections
import pickle

import numpy as np
import pytest
import torch

from rcnn_ext.errors import UserError
from rcnn_ext.models import convert_detectron2, load_detectron2
from rcnn_ext.models.pickles import read_arrays
from tests.helpers.detectron2_checkpoints import (
    checkpoint,
)


@pytest.mark.parametrize("nested", [True, False])
def test_file(tmp_path, nested):
    state = dict(checkpoint(fpn=False))
    path = tmp_path / "model_final.pth"
    torch.save({"model": state, "iteration": 7} if nested else state, path)
    model = load_detectron2(path)
    expected = convert_detectron2(state)
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickles_of_arrays(tmp_path, protocol):
    path = tmp_path / "arrays.pkl"
    small = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "big-endian, by columns": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
        "nested": [(np.float64(2.5), np.array(7))],
    }
    path.write_bytes(pickle.dumps(collections.OrderedDict(small), protocol))
    found = read_arrays(path)
    assert found["nested"][0][0] == 2.5
    assert found["nested"][0][1] == 7
    for name in ("half", "big-endian, by columns"):
        assert found[name].dtype == small[name].dtype
        np.testing.assert_array_equal(found[name], small[name])


def test_files_of_the_model_zoo(tmp_path):
    state = checkpoint(fpn=False)
    arrays = {name: np.asarray(value) for name, value in state.items()}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Model Zoo"}, 2))
    model = load_detectron2(path)
    expected = convert_detectron2(state)
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)


@pytest.mark.parametrize("values", [np.array([print]), np.zeros(2, "i4,i4"), np.array(["text"])])
def test_pickles_of_other_arrays_are_refused(tmp_path, values):
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": {"weight": values}}))
    with pytest.raises(UserError, match=r"model_final\.pkl is"):
        load_detectron2(path)


def test_bad_checkpoints(tmp_path):
    pickled = tmp_path / "model_final_b275ba.pkl"
    pickled.write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match="is not a pickle of arrays, or is damaged"):
        load_detectron2(pickled)
    pickled.write_bytes(pickle.dumps({"model": print}))
    with pytest.raises(UserError, match=r"is a pickle, which runs code .* asks for \S*\.print"):
        load_detectron2(pickled)
    with pytest.raises(UserError, match=r"cannot read .*missing\.pth"):
        load_detectron2(tmp_path / "missing.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(UserError, match="is not a checkpoint, or is damaged"):
        load_detectron2(tmp_path / "text.pth")
    with pytest.raises(UserError, match="holds no state dict of tensors"):
        load_detectron2({"model": {"step": 3}})
    with pytest.raises(UserError, match=r"has no roi_heads\.box_predictor\.cls_score"):
        load_detectron2({"head.weight": torch.zeros(2)})
    incomplete = checkpoint(fpn=True)
    del incomplete["backbone.bottom_up.res3.1.conv2.weight"]
    with pytest.raises(UserError, match=r"no Faster or Fast.*layer2\.1\.conv2\.weight"):
        load_detectron2(incomplete)
    other = checkpoint(fpn=True)
    other.conv("roi_heads.mask_head.mask_fcn1", 256, 256, 3, norm=False)
    with pytest.raises(UserError, match=r"roi_heads\.mask_head\.mask_fcn1"):
        load_detectron2(other)


def test_bad_arguments():
    with pytest.raises(ValueError, match="'BGR' or 'RGB', got 'GBR'"):
        load_detectron2({}, input_format="GBR")
    with pytest.raises(ValueError, match="pixel_mean must have one number for each of three"):
        load_detectron2(checkpoint(fpn=False), pixel_mean=(1.0,))
