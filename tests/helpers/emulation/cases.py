"""All calls on which the emulated kernels are compared."""

from __future__ import annotations

from tests.helpers.emulation.box_cases import BOX_CASES
from tests.helpers.emulation.roi_cases import ROI_CASES

CASES = [*BOX_CASES, *ROI_CASES]
