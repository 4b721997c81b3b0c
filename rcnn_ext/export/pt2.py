"""The format ``pt2``: a program of ``torch.export``.

It runs wherever torch and the operators of this package are (``import rcnn_ext.ops``), without the
code of the models, and holds no pickle and no source code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch

from rcnn_ext.export.format import ExportOptions, Format
from rcnn_ext.export.trace import trace_detector
from rcnn_ext.files import replacing
from rcnn_ext.models.detector import Detector
from rcnn_ext.predict.checkpoint import ENTRY, SavedDetector, describe
from rcnn_ext.predict.exported.model import ModelFacts
from rcnn_ext.predict.program_file import FACTS


def _write(saved: SavedDetector, path: Path, options: ExportOptions) -> None:
    detector = cast(Detector, saved.build(torch.device("cpu")))
    program = trace_detector(detector, options.size)
    # They would be stored as a pickle, which programs are to be without.
    program.example_inputs = None
    for node in program.graph.nodes:
        # Names of folders of this machine are nobody's business.
        node.meta.pop("stack_trace", None)
    entry = describe(saved.recipe, saved.classes, saved.step, saved.state)[ENTRY]
    facts = ModelFacts.of(detector, options.size).as_dict()
    with replacing(path) as temporary:
        torch.export.save(
            program, temporary, extra_files={FACTS: json.dumps({"entry": entry, "facts": facts})}
        )


FORMAT = Format("pt2", ".pt2", "a torch.export program for pictures of any size", _write)
