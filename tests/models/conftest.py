from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from rcnn_ext.models.fusion import onednn

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # The images are tiny: two threads gain nothing, and lose much on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_boxes() -> Callable[..., Tensor]:
    def make(count: int, height: float, width: float, seed: int = 0) -> Tensor:
        """Boxes [count, 4] of at least 4x4 pixels inside an image."""
        generator = torch.Generator().manual_seed(seed)
        centers = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
        halves = 4 + torch.rand(count, 2, generator=generator) * torch.tensor([width, height]) / 3
        limits = torch.tensor([width, height])
        first = (centers - halves).clamp(min=0).minimum(limits - 4)
        second = torch.maximum((centers + halves).minimum(limits), first + 4)
        return torch.cat((first, second), dim=1)

    return make


@pytest.fixture
def make_batch(make_boxes: Callable[..., Tensor]) -> Callable[..., Batch]:
    def make(
        sizes: list[tuple[int, int]], objects: list[int], num_classes: int, seed: int = 0
    ) -> Batch:
        """Noise images of the given sizes with the given numbers of objects."""
        generator = torch.Generator().manual_seed(seed)
        images, targets = [], []
        for i, ((height, width), count) in enumerate(zip(sizes, objects, strict=True)):
            images.append(torch.rand(3, height, width, generator=generator))
            labels = torch.randint(1, num_classes, (count,), generator=generator)
            boxes = make_boxes(count, height, width, seed=100 * seed + i)
            targets.append({"boxes": boxes, "labels": labels})
        return images, targets

    return make


@pytest.fixture
def onednn_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the oneDNN operators that ran."""
    calls = []
    for name in ("convolution", "convolution_add", "linear_layer", "linear_add"):
        function = getattr(onednn, name)

        def counted(*args, _name=name, _function=function, **kwargs):
            calls.append(_name)
            return _function(*args, **kwargs)

        monkeypatch.setattr(onednn, name, counted)
    return calls
