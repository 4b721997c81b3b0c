"""Results of the emulated kernels in a file, for a machine with a device and little time.

``python -m tests.helpers.emulation.recorded`` writes it. A device is then compared with it, and
nothing is compiled there.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rcnn_ext._source_hash import csrc_hash
from rcnn_ext.files import replacing
from tests.helpers.emulation.backend import emulated
from tests.helpers.emulation.cases import CASES

REPOSITORY = Path(__file__).resolve().parents[3]
PATH = REPOSITORY / "build" / "emulation" / "recorded.pt"


def record(path: Path = PATH) -> None:
    """Run all cases on emulated kernels and write their results."""
    results = {}
    for case in CASES:
        with emulated(0):
            results[case.name] = case.run()
    with replacing(path) as temporary:
        torch.save({"sources": csrc_hash(REPOSITORY / "csrc"), "results": results}, temporary)


def load(path: Path = PATH) -> dict[str, tuple[Tensor, ...]]:
    """Return the results by the names of the cases; none where they are of other sources."""
    if not path.is_file():
        return {}
    saved = torch.load(path, weights_only=True)
    return saved["results"] if saved["sources"] == csrc_hash(REPOSITORY / "csrc") else {}


if __name__ == "__main__":
    record()
    print(f"wrote {PATH}")
