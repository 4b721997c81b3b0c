"""The least time that a device needs for a model: its arithmetic at peak, its weights read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.utils.flop_counter import FlopCounterMode

from rcnn_ext.bench.timing import clock_for

# Elements per side of the matrices of the product; channels, height and width of the map of the
# convolution; and elements of the memory that is read, which is more than the caches hold.
_SIDE = 2048
_MAP = (256, 96, 128)
_NUM_READ = 2**27
_RUNS = 5


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a device reaches at best with a number of threads.

    Attributes:
        flops_per_s: Floating-point operations per second, by type, in the product of two large
            matrices or in a 3x3 convolution of many channels, whichever is faster: on some
            processors a library of products takes slower instructions than one of convolutions. A
            multiplication and an addition are two.
        bytes_per_s: Bytes of memory read per second.
    """

    flops_per_s: dict[torch.dtype, float]
    bytes_per_s: float

    def as_json(self) -> dict[str, Any]:
        """Return the speeds, with names of types."""
        flops = {_name(dtype): value for dtype, value in self.flops_per_s.items()}
        return {"flops_per_s": flops, "bytes_per_s": self.bytes_per_s}


@dataclasses.dataclass(frozen=True)
class Work:
    """What a call of a model has to do, however it is done.

    Attributes:
        flops: Floating-point operations of its convolutions and matrix products, done directly.
        num_weights: Numbers that it has to read: its parameters.
    """

    flops: int
    num_weights: int

    def floor(self, speed: Speed, dtype: torch.dtype) -> float | None:
        """Return the least time in seconds: of the arithmetic or of the memory, which is longer.

        Algorithms with fewer multiplications, such as Winograd's, may take less.

        Returns:
            None if there is no such work, or the speed in ``dtype`` is not known.
        """
        if self.flops == 0 or dtype not in speed.flops_per_s:
            return None
        read = self.num_weights * dtype.itemsize / speed.bytes_per_s
        return max(self.flops / speed.flops_per_s[dtype], read)


def count_work(call: Callable[[], Any], model: torch.nn.Module) -> Work:
    """Run a call and count what it has to do.

    Args:
        call: Runs ``model``, with or without gradients.
        model: Its parameters count.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return Work(counter.get_total_flops(), sum(p.numel() for p in model.parameters()))


def measure_speed(device: torch.device, dtypes: tuple[torch.dtype, ...], *, quick: bool) -> Speed:
    """Measure a device with the present number of threads.

    Args:
        device: The device.
        dtypes: The types of the products.
        quick: Whether to take smaller matrices, maps and less memory, which reach somewhat less.
    """
    side, num_read = (_SIDE // 2, _NUM_READ // 8) if quick else (_SIDE, _NUM_READ)
    channels, height, width = (_MAP[0], _MAP[1] // 4, _MAP[2]) if quick else _MAP
    flops = {}
    for dtype in dtypes:
        a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
        product = 2 * side**3 / _fastest(device, a.mm, b)
        x, weight = (
            torch.rand(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
            for shape in ((1, channels, height, width), (channels, channels, 3, 3))
        )
        count = 2 * 9 * channels**2 * height * width
        convolution = count / _fastest(device, partial(conv2d, padding=1), x, weight)
        flops[dtype] = max(product, convolution)
    memory = torch.ones(num_read, device=device)
    return Speed(flops, memory.nbytes / _fastest(device, memory.sum))


def _fastest(device: torch.device, call: Callable[..., Tensor], *arguments: Tensor) -> float:
    clock = clock_for(device)
    with torch.no_grad():
        return min(clock.measure([lambda: call(*arguments)], 1) for _ in range(_RUNS))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
