from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder as TorchvisionBoxCoder

from rcnn_ext.models import BoxCoder

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def encode_one(gt: list[float], anchor: list[float], weights: tuple[float, ...]) -> list[float]:
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    gt_width, gt_height = gt[2] - gt[0], gt[3] - gt[1]
    return [
        weights[0] * ((gt[0] + gt[2]) / 2 - (anchor[0] + anchor[2]) / 2) / width,
        weights[1] * ((gt[1] + gt[3]) / 2 - (anchor[1] + anchor[3]) / 2) / height,
        weights[2] * math.log(gt_width / width),
        weights[3] * math.log(gt_height / height),
    ]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), WEIGHTS])
def test_encode_equals_brute_force(make_boxes, weights):
    gt = make_boxes(50, 200, 300, seed=1).double()
    anchors = make_boxes(50, 200, 300, seed=2).double()
    expected = [
        encode_one(g, a, weights) for g, a in zip(gt.tolist(), anchors.tolist(), strict=True)
    ]
    deltas = BoxCoder(weights).encode(gt, anchors)
    torch.testing.assert_close(deltas, torch.tensor(expected, dtype=torch.float64))


def test_hand_computed_case():
    # The anchor has center (10, 20), 20 wide and 40 high; the object's center is a quarter of its
    # width to the right, and the object twice as wide.
    coder = BoxCoder((2.0, 1.0, 1.0, 1.0))
    anchor = torch.tensor([[0.0, 0.0, 20.0, 40.0]])
    gt = torch.tensor([[-5.0, 0.0, 35.0, 40.0]])
    deltas = torch.tensor([[2 * 0.25, 0.0, math.log(2), 0.0]])
    torch.testing.assert_close(coder.encode(gt, anchor), deltas)
    torch.testing.assert_close(coder.decode(deltas, anchor), gt)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), WEIGHTS])
def test_decode_inverts_encode(make_boxes, weights):
    coder = BoxCoder(weights)
    gt, anchors = make_boxes(200, 200, 300, seed=1), make_boxes(200, 200, 300, seed=2)
    torch.testing.assert_close(
        coder.decode(coder.encode(gt, anchors), anchors), gt, atol=1e-3, rtol=0
    )


def test_decode_equals_torchvision(make_boxes):
    anchors = make_boxes(100, 200, 300)
    deltas = torch.randn(100, 5 * 4) * 10
    expected = TorchvisionBoxCoder(WEIGHTS).decode(deltas, [anchors])  # [100, 5, 4]
    # One anchor is broadcast against the boxes of all classes.
    actual = BoxCoder(WEIGHTS).decode(deltas.view(100, 5, 4), anchors[:, None])
    torch.testing.assert_close(actual, expected)


def test_wild_predictions_stay_finite():
    anchors = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    box = BoxCoder().decode(torch.tensor([[0.0, 0.0, 1e4, 1e4]]), anchors)
    torch.testing.assert_close(box, torch.tensor([[-492.0, -492.0, 508.0, 508.0]]))


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 1.0, 0.0, 1.0), (1.0, 1.0, 1.0, -1.0)])
def test_bad_weights(weights):
    with pytest.raises(ValueError, match="four positive numbers"):
        BoxCoder(weights)
