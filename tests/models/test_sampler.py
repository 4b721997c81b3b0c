from __future__ import annotations

import pytest
import torch
from torchvision.models.detection._utils import (
    BalancedPositiveNegativeSampler as TorchvisionSampler,
)

from rcnn_ext.models import BalancedPositiveNegativeSampler
from rcnn_ext.models.sampler import image_generator


def labels_with(positives: int, negatives: int, ignored: int) -> torch.Tensor:
    labels = torch.tensor([3] * positives + [0] * negatives + [-1] * ignored)
    return labels[torch.randperm(len(labels))]


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        (100, 100, (16, 48)),  # enough of both
        (5, 100, (5, 59)),  # negatives make up for positives
        (100, 10, (16, 10)),  # positives do not make up for negatives
        (0, 100, (0, 64)),
        (0, 0, (0, 0)),
        (3, 4, (3, 4)),
    ],
)
def test_numbers(positives, negatives, expected):
    labels = labels_with(positives, negatives, ignored=50)
    positive, negative = BalancedPositiveNegativeSampler(64, 0.25)(labels)
    assert (len(positive), len(negative)) == expected
    assert (labels[positive] > 0).all()
    assert (labels[negative] == 0).all()
    assert len(torch.cat((positive, negative)).unique()) == sum(expected)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_equal_seeds_choose_what_torchvision_chooses(fraction):
    per_image = [labels_with(40, 90, 20), labels_with(0, 30, 5), labels_with(7, 0, 0)]
    torch.manual_seed(5)
    expected_positive, expected_negative = TorchvisionSampler(32, fraction)(per_image)
    state = torch.get_rng_state()

    torch.manual_seed(5)
    sampler = BalancedPositiveNegativeSampler(32, fraction)
    for labels, positive, negative in zip(
        per_image, expected_positive, expected_negative, strict=True
    ):
        ours = sampler(labels)
        assert torch.equal(ours[0], positive.nonzero().squeeze(1))
        assert torch.equal(ours[1], negative.nonzero().squeeze(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_every_candidate_is_drawn_equally_often():
    labels = torch.tensor([0] * 10)
    sampler = BalancedPositiveNegativeSampler(3, 0.5)
    counts = torch.zeros(10)
    for _ in range(2000):
        counts[sampler(labels)[1]] += 1
    # 600 expected each, with a standard deviation of about 20
    assert counts.min() > 500
    assert counts.max() < 700


@pytest.mark.parametrize(
    ("size", "fraction", "message"), [(0, 0.5, "sampled boxes"), (8, 1.5, "positive fraction")]
)
def test_bad_arguments(size, fraction, message):
    with pytest.raises(ValueError, match=message):
        BalancedPositiveNegativeSampler(size, fraction)


def test_without_seeds_the_global_generator_is_drawn_from():
    assert image_generator({}, 0, torch.device("cpu")) is None
    draws = [
        torch.rand(3, generator=image_generator({"seed": seed}, stage, torch.device("cpu")))
        for seed, stage in ((2**64 - 1, 0), (2**64 - 1, 0), (2**64 - 1, 1), (5, 0))
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])
