"""The scripts in benchmarks/ import, and their overrides are keys that recipes have."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("lightning", reason="lightning comes with the extra train")
ROOT = pathlib.Path(__file__).parents[2]


def run_beside_scripts(script):
    paths = [str(ROOT / "benchmarks"), str(ROOT)]
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )


def test_recipes_accept_the_overrides_of_the_scripts():
    done = run_beside_scripts(
        """
        import first_steps
        import memory_floor
        import overfit
        import roi_grid
        from rcnn_ext.config import load_recipe

        assert set(first_steps.DATA) == set(overfit.CASES)
        for name, case in overfit.CASES.items():
            assert load_recipe(name, [*overfit._COMMON, *case.overrides]).schedule.steps > 0
            assert load_recipe(name, [*first_steps._COMMON]).schedule.steps == first_steps.STEPS
        """
    )
    assert done.returncode == 0, done.stderr


def test_the_script_of_selective_search_explains_itself():
    for package in ("cv2", "selectivesearch", "skimage"):
        pytest.importorskip(package)
    done = run_beside_scripts(
        """
        import sys
        import selective_search

        sys.argv[1:] = ["--only", "flight"]
        selective_search.main()
        """
    )
    assert done.returncode == 2
    assert "expected some of parity, speed, recall, threads, growth" in done.stderr


def test_the_grid_of_roi_operators_has_200_rows_and_measures_one():
    done = run_beside_scripts(
        """
        import sys
        import roi_grid

        shapes = roi_grid.grid()
        assert len(shapes) == len({shape.name for shape in shapes}) == 200
        assert {shape.channels for shape in shapes} >= {1, 3, 16, 2048}
        row = roi_grid.measure(next(s for s in shapes if s.rois == 1 and not s.backward), 0)
        assert row["error"] <= row["tolerance"]
        assert row["ratio"] > 0
        """
    )
    assert done.returncode == 0, done.stderr


def test_a_convolution_is_compared_and_timed():
    done = run_beside_scripts(
        """
        import torch
        import conv_winograd

        row = conv_winograd.measure((32, 60, 12), torch.float32, 4, 1e-5, 0)
        assert row["name"] == "32x60x12/float32/tile4"
        assert 0 < row["error"] <= row["tolerance"]
        assert row["ratio"] > 0
        """
    )
    assert done.returncode == 0, done.stderr
