"""Evaluate a trained detector in float32 and in bfloat16, as built and prepared for inference.

Usage: python benchmarks/bfloat16_accuracy.py [--split SPLIT] RUN DATA NAME OUT.json

RUN is the folder of a training run, or what else ``rcnn-ext eval`` takes; DATA is its data set. Its
metrics in each way to run the detector are printed and become the entry NAME of OUT.json; other
entries stay. Two ways show what it would help to keep the last layers in float32. The exit code is
1 where AP of a prepared detector is lower than that of the detector as built by more than 0.5% of
its value.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Any

import torch
from torch import Tensor

from rcnn_ext._environment import describe
from rcnn_ext.bench.report import format_table
from rcnn_ext.data.dataset import DetectionDataset
from rcnn_ext.data.splits import open_split
from rcnn_ext.errors import UserError
from rcnn_ext.files import write_json
from rcnn_ext.metrics.evaluate import evaluate
from rcnn_ext.metrics.tasks import compute_metrics
from rcnn_ext.models.detector import fast_dtype
from rcnn_ext.predict.load import load_saved

# Part of AP that a prepared detector may lose.
_MAX_DROP = 0.005
_AS_BUILT = "float32, as built"
_PREPARED = ("float32, prepared", "bfloat16, prepared")
_BOX_PREDICTOR = ("roi_heads.box_predictor",)
_RPN_PREDICTORS = ("rpn.head.cls_logits", "rpn.head.bbox_pred")
# Type of the prepared detector, None for one as built, and the layers that stay in float32.
_WAYS: dict[str, tuple[torch.dtype | None, tuple[str, ...]]] = {
    _AS_BUILT: (None, ()),
    _PREPARED[0]: (torch.float32, ()),
    _PREPARED[1]: (torch.bfloat16, ()),
    "bfloat16 but box predictor": (torch.bfloat16, _BOX_PREDICTOR),
    "bfloat16 but predictors of boxes and RPN": (torch.bfloat16, _BOX_PREDICTOR + _RPN_PREDICTORS),
}
# One image, as most users have them.
_BATCH_SIZE = 1
_METRICS = ("AP", "AP50", "AP75", "AR100")


def measure(run: str, data: pathlib.Path, split: str) -> dict[str, Any]:
    """Evaluate a detector in each way.

    Args:
        run: Folder, checkpoint or id of the detector.
        data: Its data set.
        split: The split to evaluate.

    Returns:
        Step, split, numbers of images and objects, the metrics of each way, and its ``drop``: the
        part of AP that it loses.
    """
    saved = load_saved(run)
    records = open_split(saved.recipe.data, data, split)
    device = torch.device("cpu")
    entry: dict[str, Any] = {"step": saved.step, "split": split}
    ways: dict[str, dict[str, float]] = {}
    for name, (dtype, kept) in _WAYS.items():
        model: Any = saved.build(device)
        if dtype is not None:
            model.prepare_for_inference(dtype=dtype)
        keep_float32(model, saved.weights, kept)
        images = evaluate(
            model, DetectionDataset(records), device=device, batch_size=_BATCH_SIZE, workers=0
        )
        result = compute_metrics(model, images, saved.classes)
        ways[name] = {metric: float(result.summary[metric] or 0) for metric in _METRICS}
        entry.update(images=result.images, objects=result.objects)
    best = ways[_AS_BUILT]["AP"]
    if best == 0:
        raise UserError(f"{saved.path} finds nothing in {data}: train it, then compare")
    drops = {name: 1 - values["AP"] / best for name, values in ways.items()}
    return {**entry, "ways": ways, "drop": drops}


def keep_float32(model: Any, weights: dict[str, Tensor], names: tuple[str, ...]) -> None:
    """Give layers of a prepared detector their weights in float32, and inputs of that type.

    Args:
        model: The detector.
        weights: State dict of the detector as built.
        names: The layers, which have no batch norm.
    """
    for name in names:
        part = model.get_submodule(name).float()
        state = {key: weights[f"{name}.{key}"] for key in part.state_dict()}
        part.load_state_dict(state)
        part.register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs))


def main() -> int:
    """Evaluate, print a table and write the entry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("data", metavar="DATA", type=pathlib.Path)
    parser.add_argument("name", metavar="NAME", help="what the detector is, for the table")
    parser.add_argument("out", metavar="OUT.json", type=pathlib.Path)
    parser.add_argument("--split", choices=("train", "val", "test"), default="val")
    options = parser.parse_args()
    if fast_dtype(torch.device("cpu")) is not torch.bfloat16:
        print("this processor has no products of bfloat16: PyTorch emulates them", file=sys.stderr)
    entry = measure(options.run, options.data, options.split)
    print(f"{options.name}, {entry['images']} images with {entry['objects']} objects")
    rows = [[way, *(f"{v:.4f}" for v in values.values())] for way, values in entry["ways"].items()]
    print(format_table(["", *_METRICS], rows, left=1))
    found = {"suite": "bfloat16-accuracy", "detectors": {}}
    if options.out.is_file():
        found = json.loads(options.out.read_text())
    found["detectors"][options.name] = {"environment": describe(torch.device("cpu")), **entry}
    write_json(options.out, found)
    return 1 if any(entry["drop"][way] > _MAX_DROP for way in _PREPARED) else 0


if __name__ == "__main__":
    sys.exit(main())
