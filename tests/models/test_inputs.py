from __future__ import annotations

import pytest
import torch

from rcnn_ext.models import inputs
from rcnn_ext.models.inputs import build_transform


@pytest.mark.parametrize("size", [(40, 60), (2, 300), (30, 30)])
@pytest.mark.parametrize("boxes", [None, [[1.0, 0.5, 9.0, 1.5]]])
def test_huge_images_are_resized_first_with_the_same_result(monkeypatch, size, boxes):
    transform = build_transform(20, 100, None, None, {}).eval()
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))

    def results():
        targets = None
        if boxes is not None:
            targets = [{"boxes": torch.tensor(boxes), "labels": torch.tensor([1])}]
        batch, resized = transform([image], targets)
        return batch, None if resized is None else resized[0]["boxes"]

    seen = []
    normalize = transform.__class__.__base__.normalize
    monkeypatch.setattr(
        transform.__class__.__base__,
        "normalize",
        lambda self, one: seen.append(one.shape[-2:]) or normalize(self, one),
    )
    expected, expected_boxes = results()
    monkeypatch.setattr(inputs, "_LARGE_IMAGE", image.numel())
    found, found_boxes = results()
    # At its own size the image has no normalized copy.
    assert seen[0] == size
    assert seen[1:] == [found.image_sizes[0]]
    assert found.image_sizes == expected.image_sizes
    torch.testing.assert_close(found.tensors, expected.tensors, rtol=0, atol=1e-5)
    if boxes is not None:
        assert torch.equal(found_boxes, expected_boxes)
