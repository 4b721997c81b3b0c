from __future__ import annotations

import pytest
import torch

from rcnn_ext.models.roi_heads import RoIHeads


def heads(low, high=0.5):
    nothing = torch.nn.Identity()
    return RoIHeads(
        nothing, nothing, nothing, 0.5, high, 64, 0.25, None, 0.05, 0.3, 100, bg_iou_low=low
    )


PROPOSALS = torch.tensor(
    [[0.0, 0, 10, 9], [0, 0, 10, 2], [0, 0, 10, 1], [0, 0, 2, 3], [50, 50, 60, 60]]
)  # IoU with the object: 0.9, 0.2, 0.1, 0.06, 0
TARGET = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([1])}


@pytest.mark.parametrize(("low", "background"), [(0.0, 4), (0.1, 2), (0.15, 1), (0.3, 0)])
def test_background_reaches_the_limit_with_some_object(low, background):
    boxes, labels, _ = heads(low).select_training_samples([PROPOSALS], [TARGET])
    assert int((labels == 0).sum()) == background
    assert int((labels == 1).sum()) == 2  # the best proposal, and the object itself
    assert len(boxes[0]) == background + 2


def test_an_image_without_objects_is_background_all_the_same():
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    _, labels, _ = heads(0.1).select_training_samples([PROPOSALS], [empty])
    assert labels.tolist() == [0] * 5


def test_the_limit_is_checked():
    with pytest.raises(ValueError, match="minimum background IoU must lie from 0"):
        heads(0.6)
