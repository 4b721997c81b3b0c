"""Check torchvision on the operators of this package, in a process where its binary fails to load.

Run by ``tests/test_torchvision_compat.py`` and ``tools/test_compat.py``.
"""

# ruff: noqa: E402, PT017 - the order of imports is what is checked, and pytest is not needed

import warnings

warnings.simplefilter("error")

import rcnn_ext.torchvision_compat as compat  # isort: skip

import torch
import torchvision
from torch.autograd import gradcheck
from torchvision.models.detection import FasterRCNN
from torchvision.ops import batched_nms, deform_conv2d, nms, ps_roi_align, roi_align, roi_pool

from rcnn_ext import accelerate, ops

warnings.simplefilter("default")
assert compat.reason() is not None
assert torchvision.extension._has_ops()

random = torch.Generator().manual_seed(0)
corners = torch.rand(80, 2, generator=random) * 30
boxes = torch.cat((corners, corners + 1 + 9 * torch.rand(80, 2, generator=random)), dim=1)
scores, classes = torch.rand(80, generator=random), torch.arange(80) % 3
features = torch.randn(1, 4, 40, 40, generator=random)

assert torch.equal(nms(boxes, scores, 0.3), ops.nms(boxes, scores, 0.3))
assert torch.equal(
    batched_nms(boxes, scores, classes, 0.3), ops.batched_nms(boxes, scores, classes, 0.3)
)
for theirs, ours in ((roi_align, ops.roi_align), (roi_pool, ops.roi_pool)):
    torch.testing.assert_close(theirs(features, [boxes], 3), ours(features, [boxes], 3))
    last = features.to(memory_format=torch.channels_last)
    assert theirs(last, [boxes], 3).is_contiguous()
    small = features[:, :1, :12, :12].double().requires_grad_()
    assert gradcheck(lambda map, theirs=theirs: theirs(map, [boxes[:3].double()], 2), small)
    meta = theirs(features.to("meta"), [boxes.to("meta")], 3)
    assert meta.shape == (80, 4, 3, 3)


def pool(map, rois):
    return roi_align(map, rois, 3).sum() + roi_pool(map, rois, 3).sum()


rois = torch.cat((torch.zeros(80, 1), boxes), dim=1)
compiled = torch.compile(pool, backend="aot_eager", fullgraph=True)
expected, gradients = pool(features, rois), []
for function in (pool, compiled):
    map = features.clone().requires_grad_()
    function(map, rois).backward()
    gradients.append(map.grad)
torch.testing.assert_close(gradients[0], gradients[1])
torch.testing.assert_close(compiled(features, rois), expected)

with torch.autocast("cpu", torch.bfloat16):
    assert roi_align(features.bfloat16(), [boxes], 3).dtype is torch.bfloat16
    assert len(nms(boxes.bfloat16(), scores.bfloat16(), 0.3))

scripted = torch.jit.script(nms)
assert torch.equal(scripted(boxes, scores, 0.3), nms(boxes, scores, 0.3))

for refused in (
    lambda: ps_roi_align(features, rois, 2),
    lambda: deform_conv2d(features, torch.zeros(1, 18, 38, 38), torch.zeros(4, 4, 3, 3)),
):
    try:
        refused()
    except NotImplementedError as error:
        assert "needs torchvision's own binary" in str(error), error
    else:
        raise AssertionError("expected a refusal")


class Backbone(torch.nn.Module):
    """Five maps of 8 channels."""

    out_channels = 8

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 5, stride=4, padding=2)
        self.levels = torch.nn.ModuleList(
            torch.nn.Conv2d(8, 8, 3, stride=2, padding=1) for _ in range(4)
        )

    def forward(self, images):
        maps = [self.stem(images).relu()]
        for level in self.levels:
            maps.append(level(maps[-1]).relu())
        return dict(zip(("0", "1", "2", "3", "pool"), maps, strict=True))


torch.manual_seed(0)
model = FasterRCNN(Backbone(), 3, min_size=64, max_size=64).eval()
image = torch.rand(3, 64, 64)
with torch.no_grad():
    assert len(model([image])[0]["boxes"]) > 0
    with accelerate():  # which has nothing to replace, and says nothing
        assert accelerate.status().operators["cpu"] == ()
        assert len(model([image])[0]["boxes"]) > 0
target = {"boxes": torch.tensor([[5.0, 5, 40, 50]]), "labels": torch.tensor([1])}
sum(model.train()([image], [target]).values()).backward()
assert all(parameter.grad is not None for parameter in model.parameters())
torch.jit.script(torchvision.ops.MultiScaleRoIAlign(["0", "1"], 3, 2))

print("all checks passed")
