"""The toy kernels, built for each way of switching between threads."""

from __future__ import annotations

import pytest

from tests.helpers.emulation.build import build
from tests.helpers.emulation.toys import SANITIZED, TOYS, Toys


@pytest.fixture(scope="module", params=["native"] if SANITIZED else ["native", "ucontext"])
def toys(request):
    flags = ["-DRCNN_EMULATION_UCONTEXT"] if request.param == "ucontext" else []
    return Toys(
        build(f"toys-{request.param}", kernels=[TOYS], address_sanitizer=SANITIZED, flags=flags)
    )
