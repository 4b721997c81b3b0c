"""The random subset of anchors or proposals that the losses see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Key of an image's own seed, an optional entry of its target.
SEED = "seed"


class BalancedPositiveNegativeSampler:
    """Sample a fixed number of boxes of an image, at most a given fraction of them positive.

    Missing positives are made up with negatives; missing negatives are not made up.

    Args:
        batch_size_per_image: Number of boxes to sample.
        positive_fraction: Maximum fraction of them that is positive.

    It draws from torch's generator of the labels' device as torchvision's sampler of the same name
    does: a permutation of the positives, then one of the negatives. With equal seeds both choose
    the same boxes.
    """

    def __init__(self, batch_size_per_image: int, positive_fraction: float) -> None:
        if batch_size_per_image < 1:
            raise ValueError(
                f"the number of sampled boxes must be positive, got {batch_size_per_image}"
            )
        if not 0 <= positive_fraction <= 1:
            raise ValueError(f"the positive fraction must lie in [0, 1], got {positive_fraction}")
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction

    def __call__(
        self, labels: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sample the boxes of one image.

        Args:
            labels: [P] integers: above 0 positive, 0 negative, below 0 never sampled.
            generator: Generator to draw from, on the labels' device; None means torch's own.

        Returns:
            Indices into ``labels`` of the sampled positives [A] and negatives [B], ascending.
        """
        positives = (labels > 0).nonzero().squeeze(1)
        negatives = (labels == 0).nonzero().squeeze(1)
        num_positives = min(len(positives), int(self.batch_size_per_image * self.positive_fraction))
        num_negatives = min(len(negatives), self.batch_size_per_image - num_positives)
        # A permutation is drawn even where everything or nothing of it is taken: skipping one
        # would shift the generator against torchvision's.
        order_of_positives, order_of_negatives = (
            torch.randperm(len(some), generator=generator, device=labels.device)
            for some in (positives, negatives)
        )
        chosen_positives = order_of_positives[:num_positives]
        chosen_negatives = order_of_negatives[:num_negatives]
        return positives[chosen_positives].sort().values, negatives[chosen_negatives].sort().values

    def sample_padded(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Sample the boxes of a batch, as many for each image, from torch's generator.

        Args:
            labels: [N, P] integers: above 0 positive, 0 negative, below 0 never sampled.

        Returns:
            Indices [N, S] of boxes and [N, S] bool, which of them are the sample; S is the smaller
            of ``batch_size_per_image`` and P.
        """
        size = labels.shape[1]
        keys = torch.rand(labels.shape, device=labels.device)
        limit = torch.sym_min(int(self.batch_size_per_image * self.positive_fraction), size)
        best = torch.where(labels > 0, keys, -1.0).topk(limit, dim=1)
        positives = torch.zeros_like(labels, dtype=torch.bool).scatter(
            1, best.indices, best.values >= 0
        )
        # The chosen positives come first, then the negatives in random order.
        priorities = torch.where(positives, keys + 1, torch.where(labels == 0, keys, -1.0))
        best = priorities.topk(torch.sym_min(self.batch_size_per_image, size), dim=1)
        return best.indices, best.values >= 0


def image_generator(
    target: Mapping[str, Any], stage: int, device: torch.device
) -> torch.Generator | None:
    """Return the generator that the sampler of a stage uses for an image.

    Args:
        target: Target of the image. With an int under ``seed``, the sample depends on that alone,
            not on the other images of the batch nor on what was drawn before.
        stage: Number that makes the samples of the two stages of a detector differ.
        device: Device that the sampler draws on.

    Returns:
        A generator, or None for torch's own, where the target has no seed.
    """
    seed = target.get(SEED)
    if seed is None:
        return None
    return torch.Generator(device).manual_seed((int(seed) + stage) % 2**63)
