"""The comparison of detectors: equal weights, equal answers, honest rows."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import pytest
import torch

from rcnn_ext.bench import model_cases, models
from rcnn_ext.bench.contenders import OURS, TORCHVISION
from rcnn_ext.bench.floor import Speed, Work, count_work, measure_speed
from rcnn_ext.bench.model_cases import ModelCase, detection_error, loss_error
from rcnn_ext.bench.model_pair import SMALL, make_image, make_pair
from rcnn_ext.bench.models import run_case
from rcnn_ext.bench.timing import TimingConfig
from rcnn_ext.cli import main

CPU = torch.device("cpu")
TIMING = TimingConfig(min_run_time=0.0, budget=0.0, max_runs=1)


def detections(boxes, labels, scores):
    return [
        {
            "boxes": torch.tensor(boxes).reshape(-1, 4),
            "labels": torch.tensor(labels),
            "scores": torch.tensor(scores),
        }
    ]


BASE = ([[0.0, 0, 10, 10], [20.0, 20, 40, 40], [0.0, 0, 9, 9]], [1, 2, 2], [0.9, 0.8, 0.06])


def test_pair_behaves_like_a_trained_detector():
    ours, theirs = make_pair(SMALL, CPU, trainable_layers=0)
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert not any(p.requires_grad for p in ours.backbone.body.parameters())
    with torch.no_grad():
        (found,) = theirs([make_image(SMALL, CPU)])
    # Some detections of several classes, scores spread: suppression has something to decide.
    assert len(found["boxes"]) > 10
    assert len(found["labels"].unique()) > 2
    assert found["scores"].max() - found["scores"].min() > 0.2


class TestDetectionError:
    def test_order_and_sure_detections(self):
        boxes, labels, scores = BASE
        expected = detections(*BASE)
        assert detection_error(expected, expected) == pytest.approx(0.0, abs=1e-6)
        reordered = detections(boxes[::-1], labels[::-1], scores[::-1])
        assert detection_error(reordered, expected) == pytest.approx(0.0, abs=1e-6)
        # The last one lies at the threshold: it may be missing, and nothing else may.
        assert detection_error(detections(boxes[:2], labels[:2], scores[:2]), expected) < 1e-6

    @pytest.mark.parametrize("kept", [0, 1])
    def test_a_missing_detection_counts_in_both_directions(self, kept):
        boxes, labels, scores = (part[kept::2] for part in BASE)
        for pair in ((detections(boxes, labels, scores), detections(*BASE)),):
            assert detection_error(*pair) > 0.5
            assert detection_error(*pair[::-1]) > 0.5

    def test_shifts_and_scores(self):
        boxes, labels, scores = BASE
        shifted = detections([[0.0, 0, 10, 8], *boxes[1:]], labels, scores)
        assert detection_error(shifted, detections(*BASE)) == pytest.approx(0.2)
        rescored = detections(boxes, labels, [0.9, 0.7, 0.06])
        assert detection_error(rescored, detections(*BASE)) == pytest.approx(0.1)
        relabeled = detections(boxes, [1, 3, 2], scores)
        assert detection_error(relabeled, detections(*BASE)) == pytest.approx(1.0)

    def test_nothing_found(self):
        empty = detections([], [], [])
        assert detection_error(empty, empty) == 0
        assert detection_error(empty, detections(*BASE)) == pytest.approx(1.0)


def test_loss_error():
    losses = {"a": torch.tensor(2.0), "b": torch.tensor(1.0)}
    assert loss_error({"a": torch.tensor(2.1), "b": torch.tensor(1.0)}, losses) == pytest.approx(
        0.05, rel=1e-4
    )
    assert loss_error({"a": torch.tensor(2.0)}, losses) != 0


def case(calls, **options):
    return ModelCase("name", "work", 1.4, calls, detection_error, "error", **options)


def test_a_wrong_result_is_not_timed():
    right, wrong = detections(*BASE), detections([], [], [])
    calls = {TORCHVISION: lambda: right, OURS: lambda: wrong, model_cases.AS_BUILT: lambda: right}
    row = run_case(case(calls), 1, CPU, TIMING)
    assert set(row.timings) == {TORCHVISION, model_cases.AS_BUILT}
    assert len(row.failures) == 1
    assert row.failures[0].startswith("rcnn_ext: ")
    entry = row.as_json(CPU)
    assert entry["ratio_torchvision"] is None
    assert entry["contenders"][OURS]["problem"] == "wrong result"
    assert run_case(case(calls, tolerances={OURS: 2.0}), 1, CPU, TIMING).failures == []


def test_work_of_a_model_is_counted_and_has_a_floor():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 2, 1))
    x = torch.rand(1, 3, 10, 12)
    with torch.no_grad():
        work = count_work(lambda: network(x), network)
    assert work == Work(2 * 120 * (8 * 27 + 2 * 8), 8 * 27 + 8 + 2 * 8 + 2)
    arithmetic = Speed({torch.float32: 1e6, torch.bfloat16: 4e6}, 1e12)
    assert work.floor(arithmetic, torch.float32) == pytest.approx(work.flops / 1e6)
    assert work.floor(arithmetic, torch.bfloat16) == pytest.approx(work.flops / 4e6)
    memory = Speed({torch.float32: 1e15, torch.bfloat16: 1e15}, 1e3)
    assert work.floor(memory, torch.float32) == pytest.approx(work.num_weights * 4 / 1e3)
    assert work.floor(memory, torch.bfloat16) == pytest.approx(work.num_weights * 2 / 1e3)
    assert work.floor(memory, torch.float16) is None
    assert Work(0, 5).floor(memory, torch.float32) is None


def test_speeds_are_plausible():
    speed = measure_speed(CPU, (torch.float32,), quick=True)
    assert set(speed.flops_per_s) == {torch.float32}
    assert 1e8 < speed.flops_per_s[torch.float32] < 1e15
    assert 1e7 < speed.bytes_per_s < 1e14
    assert set(speed.as_json()["flops_per_s"]) == {"float32"}


def test_floors_are_in_rows():
    speed = Speed({torch.float32: 1e9, torch.bfloat16: 2e9}, 1e9)
    made = model_cases.training_case(SMALL, CPU)
    row = run_case(made, 1, CPU, TIMING, speed)
    forward = model_cases.inference_case(SMALL, CPU).count()
    # The backward pass of all but the frozen body comes on top.
    assert row.flops > 1.5 * forward.flops > 0
    entry = row.as_json(CPU)
    assert entry["flops"] == row.flops
    assert entry["contenders"][OURS]["floor_s"] == pytest.approx(row.flops / 1e9)
    assert model_cases.dtype_of("openvino-bfloat16") is torch.bfloat16
    without = run_case(model_cases.outside_case(SMALL, CPU), 1, CPU, TIMING, speed)
    assert without.as_json(CPU)["contenders"][OURS]["floor_s"] is None


@pytest.mark.parametrize(
    "make", [model_cases.inference_case, model_cases.training_case, model_cases.outside_case]
)
def test_cases_agree(make):
    made = make(SMALL, CPU)
    row = run_case(made, 1, CPU, TIMING)
    assert row.failures == []
    assert row.timings.keys() == made.calls.keys()
    assert row.ratio(OURS) > 0


def test_runtimes_detect_the_same():
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    made = model_cases.inference_case(SMALL, CPU, runtimes=True)
    assert {"onnxruntime", "openvino"} <= set(made.calls)
    # Half types have no answer to compare.
    calls = {name: call for name, call in made.calls.items() if not name.endswith("bfloat16")}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        row = run_case(dataclasses.replace(made, calls=calls), threads, CPU, TIMING)
        assert row.failures == []
        assert row.timings.keys() == calls.keys()
        assert max(row.errors.values()) < 1e-3


def test_networks_do_not_run_outside_of_themselves(monkeypatch):
    made = model_cases.outside_case(SMALL, CPU)

    def fail(*_, **__):
        raise AssertionError("a convolution ran")

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", fail)
    monkeypatch.setattr(torch.nn.Linear, "forward", fail)
    with torch.no_grad():
        for call in made.calls.values():
            assert len(call()[0]["boxes"]) > 0


def test_options_that_do_not_apply(capsys):
    assert main(["bench", "--models", "--only", "nms"]) == 2
    assert "--models: --only is for the comparison of operators" in capsys.readouterr().err


def test_command_writes_json(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        models, "_makers", lambda *args, runtimes: [partial(model_cases.outside_case, *args)]
    )
    arguments = ["bench", "--models", "--quick", "--threads", "1", "--json", str(tmp_path)]
    assert main(arguments) == 0
    (path,) = tmp_path.glob("*-models.json")
    report = json.loads(path.read_text())
    assert report["suite"] == "models"
    assert report["failures"] == []
    assert report["settings"]["speeds"]["1"]["flops_per_s"]["float32"] > 0
    assert [row["case"] for row in report["results"]] == ["outside_networks"]
    contender = report["results"][0]["contenders"]["torchvision"]
    assert contender["median_s"] > 0
    assert contender["median_cpu_s"] >= contender["min_cpu_s"] > 0
    out = capsys.readouterr().out
    assert "without backbone" in out
    assert "floor" in out


def test_boxes_without_an_area_are_compared_by_their_coordinates():
    found = {
        "boxes": torch.tensor([[4.0, 4, 4, 9], [0, 0, 5, 5]]),
        "labels": torch.tensor([1, 1]),
        "scores": torch.tensor([0.9, 0.5]),
    }
    assert model_cases.detection_error([found], [found]) == 0
    moved = {**found, "boxes": found["boxes"] + torch.tensor([[1.0], [0.0]])}
    assert model_cases.detection_error([moved], [found]) == 1
