"""Emulated and real results on one input: bit for bit where the contract says so.

Both compilers run without contraction into fused multiply-adds, and division and square root are
rounded correctly on the device; so only the arc tangent of complete_box_iou may differ.
"""

from __future__ import annotations

import os

import pytest
import torch

from rcnn_ext import _extension
from tests.helpers.emulation.backend import emulated
from tests.helpers.emulation.build import why_not
from tests.helpers.emulation.case import Case
from tests.helpers.emulation.cases import CASES
from tests.helpers.emulation.recorded import load

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module")
def recorded() -> dict[str, tuple[torch.Tensor, ...]]:
    """Results of emulated kernels that came along; empty where the kernels are emulated here."""
    return load()


@pytest.fixture(scope="module", autouse=True)
def _device(recorded: dict[str, tuple[torch.Tensor, ...]]) -> None:
    module = _extension.status()["_C_cuda"]
    reason = module.reason if not module.loaded else None
    reason = reason or (None if recorded else why_not())
    reason = reason or (None if torch.cuda.is_available() else "no CUDA device")
    if reason is not None and os.environ.get("FAIL_WITHOUT_CUDA") == "1":
        pytest.fail(reason, pytrace=False)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_emulator_and_device_agree(
    case: Case, seed: int, recorded: dict[str, tuple[torch.Tensor, ...]]
) -> None:
    if case.name in recorded:  # the same under every schedule
        emulated_results = recorded[case.name]
    else:
        with emulated(seed):
            emulated_results = case.run()
    device_results = case.run("cuda")
    for mine, theirs in zip(emulated_results, device_results, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.stride() == theirs.stride()
        tolerance = 0 if case.exact_on_device else 1e-6
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)
