"""Comparison of fused networks with plain ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rcnn_ext.models.fusion import onednn

needs_onednn = pytest.mark.skipif(
    onednn.why_unavailable() is not None, reason=str(onednn.why_unavailable())
)

DTYPES = [
    pytest.param(
        dtype,
        marks=pytest.mark.skipif(
            onednn.why_not_dtype(dtype) is not None, reason=str(onednn.why_not_dtype(dtype))
        ),
    )
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
]


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def assert_near(found, expected, bound=1e-5):
    if isinstance(expected, Tensor):
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        if expected.numel():
            assert relative_error(found, expected) < bound
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for name in expected:
            assert_near(found[name], expected[name], bound)
    else:
        assert len(found) == len(expected)
        for one, two in zip(found, expected, strict=True):
            assert_near(one, two, bound)
