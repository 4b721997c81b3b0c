"""The figures of both READMEs are those of the newest files in benchmarks/results."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location(
        "update_readme", ROOT / "tools" / "update_readme.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(date, device="cpu"):
    row = {
        "case": "nms/1000",
        "operator": "nms",
        "work": "1,000 boxes",
        "dtype": "float32",
        "threads": 1,
        "counterpart": "torchvision",
        "ratio_torchvision": 25.0,
        "target": 30.0,
        "contenders": {"rcnn_ext": {"median_s": 1e-4}, "torchvision": {"median_s": 2.5e-3}},
    }
    environment = {
        "device": device,
        "device_name": "a machine",
        "date": date,
        "csrc_hash": "abc",
        "versions": {"torch": "2.15.0", "torchvision": "0.29.2"},
    }
    return {"environment": environment, "results": [row]}


@pytest.mark.parametrize("name", ["README.md", "benchmarks/README.md"])
def test_readmes_have_the_newest_figures(tool, name):
    (block,) = (block for path, block in tool.DOCUMENTS if path == ROOT / name)
    text = (ROOT / name).read_text()
    assert tool.updated(text, block) == text, "run tools/update_readme.py"


def test_check_fails_for_a_document_with_old_figures(tool, tmp_path, monkeypatch, capsys):
    document = tmp_path / "README.md"
    document.write_text(f"before\n{tool.BEGIN}\nold\n{tool.END}\nafter\n")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "DOCUMENTS", ((document, lambda: "new"),))
    monkeypatch.setattr("sys.argv", ["update_readme.py", "--check"])
    assert tool.main() == 1
    assert "README.md does not have the newest figures" in capsys.readouterr().out
    assert "old" in document.read_text(), "--check writes nothing"
    monkeypatch.setattr("sys.argv", ["update_readme.py"])
    assert tool.main() == 0
    assert document.read_text() == f"before\n{tool.BEGIN}\nnew\n{tool.END}\nafter\n"
    monkeypatch.setattr("sys.argv", ["update_readme.py", "--check"])
    assert tool.main() == 0


def test_newest_is_by_date_not_by_name(tool, tmp_path):
    (tmp_path / "b.json").write_text(json.dumps(report("2026-01-02T00:00:00")))
    (tmp_path / "a.json").write_text(json.dumps(report("2026-01-03T00:00:00")))
    (tmp_path / "c.json").write_text(json.dumps(report("2026-01-04T00:00:00", "cuda")))
    path, _ = tool.newest("cpu", tmp_path)
    assert path.name == "a.json"
    assert tool.newest("cuda", tmp_path)[0].name == "c.json"


def test_table_gives_times_and_ratio(tool):
    text = tool.operator_table("results/a.json", report("2026-01-02T00:00:00"))
    assert "| `nms` | 1,000 boxes | 100 us | 2.50 ms | 25.0x | 30x |" in text


def test_table_has_ratios_with_avx2_where_they_were_measured(tool):
    measured = report("2026-01-02T00:00:00")
    measured["results"][0]["avx2"] = {"ratio_torchvision": 123.4}
    text = tool.operator_table("results/a.json", measured)
    assert "| 25.0x | 30x | 123x |" in text


def test_operator_not_in_torchvision_has_the_time_of_the_reference_and_no_ratio(tool):
    measured = report("2026-01-02T00:00:00")
    row = measured["results"][0]
    row.update(operator="soft_nms", counterpart=None, ratio_torchvision=None, target=None)
    row["contenders"] = {"rcnn_ext": {"median_s": 1e-4}, "reference": {"median_s": 0.25}}
    link = "results/a.json"
    cells = "| `soft_nms` | 1,000 boxes | 100 us | not in torchvision; our reference 250 ms |  |"
    assert cells in tool.operator_table(link, measured)
    del row["contenders"]["reference"]
    assert "| 100 us | not in torchvision |  |  |" in tool.operator_table(link, measured)
    row["contenders"]["rcnn_ext"] = {"problem": "it failed"}
    assert "soft_nms" not in tool.operator_table(link, measured)


def test_newest_leaves_other_suites_out(tool, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(report("2026-01-02T00:00:00")))
    growth = report("2026-01-03T00:00:00") | {"suite": "growth"}
    (tmp_path / "a-growth.json").write_text(json.dumps(growth))
    assert tool.newest("cpu", tmp_path)[0].name == "a.json"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.234e-6, "1.23 us"),
        (1e-4, "100 us"),
        (0.0123, "12.3 ms"),
        (2.5, "2.50 s"),
        (12.0, "12.0 s"),
    ],
)
def test_seconds(tool, value, text):
    assert tool.seconds(value) == text


def test_detectors_have_a_table_with_memory(tool):
    side = {"median_s": 1.5, "ratio_torchvision": 2.0, "extra_bytes": 3 * 2**20}
    row = {"work": "inference", "threads": 2, "target": 1.4}
    row["contenders"] = {"rcnn_ext": side, "torchvision": {**side, "median_s": 3.0}}
    results = {**report("2026-01-02T00:00:00"), "results": [row]}
    text = tool.model_table("results/a.json", results)
    assert "| inference | 2 | 1.50 s | 3.00 s | 2.00x | 1.4x | 3 MiB | 3 MiB |" in text


def test_other_runtimes_have_a_table_and_a_sentence(tool):
    times = {"rcnn_ext": 0.5, "onnxruntime": 1.0, "openvino": 0.75}
    times |= {"rcnn_ext-bfloat16": 0.3, "openvino-bfloat16": 0.45}
    entries = {name: {"median_s": value, "floor_s": value / 5} for name, value in times.items()}
    rows = [
        {"case": "inference", "work": "a detector", "threads": threads, "contenders": entries}
        for threads in (1, 2)
    ]
    rows.append({"case": "step", "work": "a step", "threads": 1, "contenders": {"rcnn_ext": {}}})
    made = {**report("2026-01-02T00:00:00"), "results": rows}
    lines = tool.runtimes_table(made).splitlines()
    cells = "500 ms | 1.00 s | 750 ms | 2.00x | 1.50x | 100 ms |"
    assert f"| a detector | float32 | 1 | {cells}" in lines
    half = "| a detector | bfloat16 | 2 | 300 ms |  | 450 ms |  | 1.50x | 60.0 ms |"
    assert half in lines
    assert len(lines) == 8
    assert tool._runtimes_line(made) == (
        "a detector, 2 threads: ours 500 ms, OpenVINO 750 ms, ONNX Runtime 1.00 s; in bfloat16 "
        "ours 300 ms, OpenVINO 450 ms."
    )
    assert tool._runtimes_line({**made, "results": rows[2:]}) == ""


def test_short_table_has_operators_on_one_thread_and_models_on_all(tool):
    operators = report("2026-01-02T00:00:00")
    (row,) = operators["results"]
    chosen = {**row, "case": "nms/5000", "work": "5,000 boxes"}
    operators["results"] += [{**chosen, "threads": 2, "ratio_torchvision": 99.0}, chosen]
    model = {**row, "case": "inference", "work": "Faster R-CNN", "threads": 2}
    models = {**operators, "results": [{**model, "threads": 1}, model]}
    text = tool.short_table({"operators": operators, "models": models})
    assert "a machine, torch 2.15.0" in text.splitlines()[0]
    assert text.splitlines()[4:] == [
        "| `nms` | 5,000 boxes | 1 | 100 us | 2.50 ms | 25.0x |",
        "| whole model | Faster R-CNN | 2 | 100 us | 2.50 ms | 25.0x |",
    ]


def test_every_chosen_row_is_a_case_of_the_suite(tool):
    from rcnn_ext.bench.suite import suite

    names = {case.name for case in suite(quick=False)}
    assert {case for kind, case in tool.SHORT_ROWS if kind == "operators"} <= names
    assert len(tool.SHORT_ROWS) == 7


def test_table_of_accelerated_detectors(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "newest", lambda device, suite: None)
    assert "unrun" in tool.clients_block()
    made = report("2026-11-01T00:00:00+00:00")
    times = {"torchvision": (2.0, 1.0), "operators": (1.6, 1.25), "models": (1.0, 2.0)}
    made["settings"] = {"backbone": "resnet50", "width": 544, "height": 400}
    made["results"] = [
        {
            "work": "SSD, inference",
            "threads": 1,
            "contenders": {
                name: {"median_cpu_s": seconds, "cpu_ratio_torchvision": ratio}
                for name, (seconds, ratio) in times.items()
            },
        }
    ]
    monkeypatch.setattr(tool, "newest", lambda device, suite: (tmp_path / "x.json", made))
    assert "| SSD, inference | 1 | 2.00 s | 1.25x | 2.00x |" in tool.clients_block()
