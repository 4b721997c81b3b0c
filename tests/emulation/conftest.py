from __future__ import annotations

import sys
from pathlib import Path

# For `from emulation.backend import ...`, here and in tests/ops.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
