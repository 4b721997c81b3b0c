"""The comparison of pipelines: equal answers, rates that add up, targets that are checked."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from rcnn_ext.bench.contenders import OURS, TORCHVISION
from rcnn_ext.bench.model_pair import SMALL, make_pair
from rcnn_ext.bench.pipeline import NETWORK, PipelineRow, make_pictures, run_row
from rcnn_ext.bench.timing import Timing
from rcnn_ext.cli import main

CPU = torch.device("cpu")


def made_row(ours: float, theirs: float, network: float) -> PipelineRow:
    seconds = {OURS: (ours, 3 * ours), TORCHVISION: (theirs,) * 2, NETWORK: (network,) * 2}
    timings = {name: Timing(value, 5) for name, value in seconds.items()}
    sizes = dict.fromkeys(seconds, 1)
    return PipelineRow("work", 1, timings, sizes, {OURS: 0.0, TORCHVISION: 0.0}, [])


def test_rates_are_of_all_files_together():
    row = made_row(0.05, 0.3, 0.08)
    # 0.05 and 0.15 seconds per picture in two equal parts.
    assert row.rate(OURS) == pytest.approx(10)
    assert row.ratio == pytest.approx(3)
    assert row.of_network == pytest.approx(0.8)
    entry = row.as_json(CPU)
    assert entry["target_reached"] is True
    assert entry["contenders"][OURS]["pictures_per_s"] == pytest.approx(10)
    assert made_row(0.05, 0.14, 0.08).as_json(CPU)["target_reached"] is False


def test_pictures_differ_and_have_the_size_of_photographs(tmp_path):
    paths = make_pictures(tmp_path, SMALL, 3)
    assert len({path.read_bytes() for path in paths}) == 3
    for path in paths:
        with Image.open(path) as picture:
            assert picture.size == (SMALL.width, SMALL.height)
        # Photographs take about 1 to 3 bits per pixel at this quality.
        assert 1 < path.stat().st_size * 8 / (SMALL.width * SMALL.height) < 5


def test_a_wrong_result_is_a_failure(tmp_path):
    ours, theirs = make_pair(SMALL, CPU, trainable_layers=0)
    ours.prepare_for_inference(dtype=None)
    paths = make_pictures(tmp_path, SMALL, 3)
    assert run_row("work", 1, ours, theirs, paths).failures == []
    with torch.no_grad():
        theirs.roi_heads.box_predictor.bbox_pred.bias += 1.0
    (failure,) = run_row("work", 1, ours, theirs, paths).failures
    assert failure.startswith("rcnn_ext: score or 1 - IoU")


def test_command(tmp_path, capsys):
    out = tmp_path / "pipeline.json"
    arguments = ["bench", "--pipeline", "--quick", "--threads", "1", "--pictures", "5"]
    assert main([*arguments, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "5 JPEG files of 128x96" in printed
    assert printed.count(NETWORK) == 2  # its row, and what it is
    report = json.loads(out.read_text())
    assert report["suite"] == "pipeline"
    assert report["settings"]["pictures"] == 5
    (row,) = report["results"]
    assert set(row["contenders"]) == {OURS, TORCHVISION, NETWORK}
    assert row["contenders"][OURS]["error"] < 1e-3
    assert row["of_network"] > 0
    assert report["environment"]["csrc_hash"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pictures", "3"], "--pictures is for --pipeline"),
        (["--models", "--pictures", "3"], "--pictures is for --pipeline"),
        (["--pipeline", "--only", "nms"], "--pipeline: --only is for the comparison of operators"),
        (["--pipeline", "--models"], "not allowed with"),
        (["--pipeline", "--pictures", "0"], "pictures"),
    ],
)
def test_options_that_do_not_go_together(options, message, capsys):
    try:
        code = main(["bench", *options])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert message in capsys.readouterr().err
