"""The number that a sum over samples is divided by to become a loss.

A detector's losses are sums over the anchors or RoIs that were sampled, divided by their number.
Where several processes share a batch, that number is known only to all of them together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, distributed

# From the number of samples of this process, or the sum of their weights, and the device of the
# loss to the divisor.
LossNormalizer = Callable[[float | Tensor, torch.device], float | Tensor]


def own_samples(num_samples: float | Tensor, device: torch.device) -> float | Tensor:
    """Return ``num_samples``, or 1 where there are none: a loss of 0, not 0 / 0.

    Args:
        num_samples: Number of samples of this process, or the sum of their weights, 0 or more.
        device: Device of the loss.
    """
    if isinstance(num_samples, Tensor):
        return num_samples.where(num_samples > 0, 1)
    return num_samples or 1


def mean_over_processes(num_samples: float | Tensor, device: torch.device) -> float | Tensor:
    """Return the mean of ``num_samples`` over the processes of the default group.

    The mean of the processes' gradients, which ``DistributedDataParallel`` takes, then is the
    gradient of the whole batch, whatever part of it each process has. Every process has to call
    this equally often. Without a group it is ``own_samples``.

    Args:
        num_samples: Number of samples of this process, or the sum of their weights, 0 or more.
        device: Device of the loss.

    Returns:
        The mean, or 1 where no process has any sample; a float32 scalar on ``device`` in a group.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return own_samples(num_samples, device)
    total = torch.as_tensor(num_samples, dtype=torch.float64, device=device).detach().clone()
    distributed.all_reduce(total)
    return torch.where(total > 0, total / distributed.get_world_size(), 1.0).float()
