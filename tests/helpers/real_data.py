"""The real images that some tests read, where the checkout has them beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

REAL = Path(__file__).parents[3] / "shared" / "data"

needs_real_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real images are not in {REAL}")
