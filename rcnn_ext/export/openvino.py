"""The format ``openvino``: OpenVINO's own files, ``.xml`` with the graph and ``.bin`` beside it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from rcnn_ext.export.format import ExportOptions, Format
from rcnn_ext.export.onnx import write_graph
from rcnn_ext.export.verify import verify
from rcnn_ext.files import make_folder, replacing
from rcnn_ext.predict.checkpoint import SavedDetector
from rcnn_ext.predict.exported.onnx import read_metadata
from rcnn_ext.predict.exported.openvino import (
    METADATA,
    load_openvino,
    openvino,
    openvino_core,
)


def _write(saved: SavedDetector, path: Path, options: ExportOptions) -> None:
    import torch

    runtime = openvino()
    make_folder(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name[:200]}-") as folder:
        source = Path(folder, "model.onnx")
        write_graph(saved, source, options.size, takes_sizes=options.takes_sizes)
        model = openvino_core().read_model(source)
        for key, value in read_metadata(source).items():
            model.set_rt_info(value, [METADATA, key])
        made = Path(folder, "model.xml")
        # The runtime chooses the precision, and the file keeps that of the weights.
        runtime.save_model(model, made, compress_to_fp16=False)
        if options.verify:
            loaded = load_openvino(made)
            verify(saved, loaded.build(torch.device("cpu")), "OpenVINO", options)
        with replacing(path) as graph, replacing(path.with_suffix(".bin")) as weights:
            shutil.copyfile(made, graph)
            shutil.copyfile(made.with_suffix(".bin"), weights)


FORMAT = Format(
    "openvino",
    ".xml",
    "OpenVINO's files: .xml, and .bin beside it",
    _write,
    verifies=True,
    chooses_sizes=True,
)
