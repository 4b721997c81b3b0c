"""``rcnn_ext.load`` inside a mapper of Ray Data, as in docs/inference.md."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

from rcnn_ext.cli import main

_SCRIPT = """
import os, sys
# It would send figures of its use.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray

try:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
except Exception as error:
    print(f"NO RAY: {error}")
    sys.exit()

import json
from pathlib import Path

import rcnn_ext


class Detect:
    def __init__(self, run):
        self.model = rcnn_ext.load(run)

    def __call__(self, batch):
        found = self.model.predict(list(batch["path"]), min_score=0.0, on_error="return")
        return {
            "path": batch["path"],
            "result": [
                json.dumps({"error": str(one)} if isinstance(one, Exception) else one.to_coco())
                for one in found
            ],
        }


run, folder = sys.argv[1:]
paths = ray.data.from_items([{"path": str(path)} for path in sorted(Path(folder).iterdir())])
for row in paths.map_batches(
    Detect, fn_constructor_args=(run,), batch_size=2, concurrency=1
).take_all():
    print("ROW " + json.dumps([row["path"], json.loads(row["result"])]))
"""


@pytest.mark.skipif(find_spec("ray") is None, reason="ray comes with the extra ray")
def test_a_mapper_of_ray_data_finds_what_detect_finds(tiny_run, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(tiny_run.data / "val", folder)
    (folder / "bad.png").write_text("no picture")
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(tiny_run.out), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "NO RAY" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    rows = dict(
        json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("ROW ")
    )
    assert "is not an image that Pillow can read" in rows.pop(str(folder / "bad.png"))["error"]
    (folder / "bad.png").unlink()
    out = tmp_path / "out"
    command = ["detect", str(tiny_run.out), str(folder), "--out", str(out), "--min-score", "0"]
    assert main([*command, "--no-pictures", "--device", "cpu"]) == 0
    found = [entry for path in sorted(rows) for entry in rows[path]]
    expected = json.loads((out / "detections.json").read_text())
    for entries in (found, expected):
        for entry in entries:
            del entry["image_id"]
    assert found == expected
