"""Memory of large maps between calls."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from rcnn_ext.models.fusion import buffers, fuse_model
from rcnn_ext.models.fusion.buffers import MapBuffers
from tests.helpers.fused import needs_onednn
from tests.models.test_folding import randomize

pytestmark = needs_onednn

LAST = torch.channels_last


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def small_buffers(monkeypatch):
    monkeypatch.setattr(MapBuffers, "MIN_BYTES", 2**14)
    monkeypatch.setattr(buffers, "_GRANULARITY", 2**12)


@pytest.mark.skipif(buffers._use_count is None, reason="this PyTorch does not count references")
class TestBuffers:
    def test_memory_is_given_out_again_only_when_nobody_holds_it(self, small_buffers):
        memory = MapBuffers()
        first = memory.take((1, 64, 10, 10), torch.float32)
        assert first.is_contiguous(memory_format=LAST)
        view = first[:, 3:5, 2]
        second = memory.take((1, 64, 10, 10), torch.float32)
        place = first.data_ptr()
        assert second.data_ptr() != place
        del first
        third = memory.take((1, 64, 10, 10), torch.float32)
        assert third.data_ptr() not in (place, second.data_ptr())
        del view
        fourth = memory.take((1, 32, 10, 10), torch.float64)
        assert fourth.data_ptr() == place
        assert memory.take((1, 4, 4, 4), torch.float32) is None

    def test_a_small_map_leaves_large_memory_free(self, small_buffers):
        memory = MapBuffers()
        large = memory.take((1, 64, 40, 40), torch.float32)
        place = large.data_ptr()
        del large
        small = memory.take((1, 64, 10, 10), torch.float32)
        assert small.data_ptr() != place
        assert memory.take((1, 64, 40, 40), torch.float32).data_ptr() == place
        assert memory.take((1, 64, 5, 5), torch.float32, 100) is not None

    def test_new_sizes_do_not_gather(self, small_buffers):
        memory = MapBuffers()
        for side in range(20, 60):
            memory.take((1, 32, side, side), torch.float32)
        assert memory.num_bytes < 4 * 32 * 60**2 + 2**12

    def test_networks_hand_out_maps_that_stay(self, small_buffers):
        network = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=nn.BatchNorm2d
        )
        randomize(network)
        fuse_model(network)
        images = [torch.rand(1, 3, 96, 96) for _ in range(4)]
        expected = []
        for image in images:
            expected.append({name: value.clone() for name, value in network(image).items()})
        network(images[0])
        size = network.body["conv1"]._fused_buffers.num_bytes
        assert size > 0
        held = [network(image) for image in images]
        for found, other in zip(held, expected, strict=True):
            for name in other:
                assert torch.equal(found[name], other[name])
        results = {}

        def run(index):
            with torch.inference_mode(index % 2 == 0), torch.no_grad():
                for _ in range(5):
                    results[index] = network(images[index])

        threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for index, other in enumerate(expected):
            for name in other:
                assert torch.equal(results[index][name], other[name])

    def test_a_pyramid_gives_up_the_maps_that_it_read(self, small_buffers):
        network = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d
        )
        randomize(network)
        fuse_model(network)
        image = torch.rand(1, 3, 128, 128)
        memory = network.body["conv1"]._fused_buffers

        def run(module):
            memory._buffers.clear()
            found = module(image)
            return found, memory.num_bytes

        apart, most = run(lambda image: network.fpn(network.body(image)))
        features = network.body(image)
        kept = {name: value.clone() for name, value in features.items()}
        network.fpn(features)
        assert list(features) == list(kept), "a pyramid alone leaves what it is given"
        together, least = run(network)
        assert least < most
        for name, value in apart.items():
            assert torch.equal(together[name], value)
        held = []
        network.body.register_forward_hook(lambda module, arguments, result: held.append(result))
        run(network)
        for name, value in kept.items():
            assert torch.equal(held[0][name], value)
