"""The command line as a whole: help, exit codes, one-line errors, and what commands import."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from PIL import Image

import rcnn_ext
from rcnn_ext.cli import app as cli
from rcnn_ext.cli import eval as eval_command
from rcnn_ext.config import recipe_names
from rcnn_ext.errors import UserError

ROOT = Path(rcnn_ext.__file__).parents[1]
REAL = ROOT.parent / "shared" / "data" / "coco"
HEAVY = ("torch", "numpy", "PIL", "lightning", "yaml", "matplotlib")
EXTRA = ("lightning", "faster_coco_eval", "matplotlib", "yaml", "tqdm", "safetensors", "lxml")


def python(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        **options,
    )


def run(capsys, *arguments):
    """Runs a command in this process; returns its exit code, output and the lines of its errors."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


def help_without_heavy_imports(*command):
    script = textwrap.dedent(
        f"""
        import sys
        from rcnn_ext.cli import main
        try:
            main([*sys.argv[1:], "--help"])
        except SystemExit as stop:
            assert stop.code == 0
        heavy = set({HEAVY!r}) & set(sys.modules)
        assert not heavy, heavy
        """
    )
    return python("-c", script, *command)


def test_help_names_every_command_and_imports_nothing_heavy():
    finished = help_without_heavy_imports()
    assert finished.returncode == 0, finished.stderr
    for command in cli.COMMANDS:
        assert re.search(rf"^    {command}( |$)", finished.stdout, re.MULTILINE), command
    assert "rcnn-ext train faster_rcnn_coco_small --data DATA" in finished.stdout


@pytest.mark.parametrize(
    "command", ["train", "eval", "detect", "export", "bench", "doctor", "demo"]
)
def test_help_of_a_command_imports_nothing_heavy(command):
    finished = help_without_heavy_imports(command)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell the CPU time of children")
def test_help_takes_at_most_300_ms():
    """CPU time, the minimum of some runs: other processes of the machine do not count."""
    import resource

    def cpu_seconds():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    seconds = []
    for _ in range(5):
        before = cpu_seconds()
        assert python("-m", "rcnn_ext", "--help").returncode == 0
        seconds.append(cpu_seconds() - before)
    assert min(seconds) <= 0.3


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert out.startswith(f"usage: rcnn-ext {command}")
    assert "--debug" in out
    if command == "train":
        assert all(name in out for name in recipe_names())
    if command == "selective-search":
        defaults = " ".join(out.split())
        assert "(default: 500; fast: 50 100; quality: 50 100 150 300)" in defaults
        assert "(default: 0.9; fast: 0.8; quality: 0.8)" in defaults
        assert "(default: 10; fast: the scale; quality: the scale)" in defaults


def test_version(capsys):
    assert run(capsys, "--version")[:2] == (0, f"rcnn-ext {rcnn_ext.__version__}\n")


def test_python_m_is_the_same_command(tmp_path):
    finished = python("-m", "rcnn_ext", "eval", tmp_path / "gone", "--data", tmp_path)
    assert finished.returncode == 2
    assert finished.stdout == ""
    expected = f"rcnn-ext: the checkpoint {tmp_path / 'gone'} does not exist"
    assert finished.stderr.splitlines() == [expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "faster_rcnn_cocoo", "--data", ".", "--out", "x"],
            "did you mean faster_rcnn_coc",
        ),
        (["train", "faster_rcnn_coco", "--data", ".", "--out", "x", "lr=1"], "mean optimizer.lr?"),
        (
            ["train", "faster_rcnn_coco", "nonsense", "--data", ".", "--out", "x"],
            "section.key=value",
        ),
        (["train", "faster_rcnn_coco", "--out", "x"], "train needs --data"),
        (["train", "--data", ".", "--out", "x", "seed=1"], "train needs a RECIPE; only --resume"),
        (["train", "--data", ".", "--out", "x", "--resume"], "nothing to resume: x/recipe.yaml"),
        (["train", "--data", ".", "--resume"], "train needs --out"),
        (["train", "faster_rcnn_coco", "--data", "gone", "--out", "x"], "gone does not exist"),
        (
            ["train", "faster_rcnn_coco", "--data", ".", "--out", "x", "--resume", "--overwrite"],
            "excl",
        ),
        (["eval", ".", "--data", "gone"], "has neither best.ckpt nor last.ckpt"),
        (["proposals", "x"], "unknown command proposals; it is called selective-search now"),
        (["detect", "gone", "gone.jpg", "--out", "x"], "gone is no file, no folder and no model"),
        (
            ["train", "faster_rcnn_coco", "--data", "file", "--out", "file"],
            "cannot make the folder",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    code, _, errors = run(capsys, *arguments)
    assert code == 2
    assert len(errors) == 1
    assert errors[0].startswith("rcnn-ext: ")
    assert message in errors[0]
    assert not Path("x").exists() or os.listdir("x") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["eval"], "the following arguments are required: RUN, --data"),
        (["train", "r", "--max-steps", "0"], "must be at least 1, not 0"),
        (["train", "r", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["detect", "r", "i", "--out", "o", "--min-score", "7"], "must be from 0 to 1, not 7"),
    ],
)
def test_wrong_usage(capsys, arguments, message):
    code, _, errors = run(capsys, *arguments)
    assert code == 2
    assert message in errors[-1]


def test_files_that_are_no_checkpoints(capsys, tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    torch.save({"code": Image.new}, tmp_path / "pickle.ckpt")
    for name, message in (
        ("text.ckpt", "is not a checkpoint, or is damaged"),
        ("foreign.ckpt", "was not written by rcnn-ext train"),
        ("pickle.ckpt", "is not a checkpoint, or is damaged"),
    ):
        code, _, errors = run(capsys, "eval", tmp_path / name, "--data", tmp_path)
        assert (code, len(errors)) == (2, 1)
        assert message in errors[0]


def test_a_checkpoint_of_a_newer_version_says_so(capsys, tmp_path, tiny_run):
    import torch

    content = torch.load(tiny_run.out / "best.ckpt", weights_only=True)
    content["rcnn_ext"] |= {"format": 99, "version": "9.9"}
    torch.save(content, tmp_path / "new.ckpt")
    code, _, errors = run(capsys, "eval", tmp_path / "new.ckpt", "--data", tiny_run.data)
    assert code == 2
    assert "was written by rcnn_ext 9.9, which is newer" in errors[0]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("first line\nsecond line"), 2, "rcnn-ext: first line second line"),
        (KeyboardInterrupt(), 130, "rcnn-ext: interrupted"),
        (ModuleNotFoundError("", name="lightning.pytorch"), 2, "pip install 'rcnn-ext[train]'"),
        (ModuleNotFoundError("No module named 'x'", name="x"), 1, "No module named 'x'"),
        (PermissionError(13, "Permission denied", "/a/b"), 2, "rcnn-ext: /a/b: Permission denied"),
        (RuntimeError("oh\nno"), 1, "unexpected RuntimeError: oh (add --debug to see where)"),
    ],
)
def test_exceptions_become_lines_and_codes(capsys, monkeypatch, error, code, message):
    def fail(options):
        raise error

    monkeypatch.setattr(eval_command, "run", fail)
    got, _, errors = run(capsys, "eval", "x", "--data", "y")
    assert got == code
    assert len(errors) == 1
    assert message in errors[0]
    for arguments in (["--debug", "eval", "x"], ["eval", "x", "--debug"]):
        assert run(capsys, *arguments, "--data", "y")[2][0].startswith("Traceback")


def test_errors_of_data_loader_workers_are_unwrapped():
    text = (
        "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        "last):\n  File ...\nrcnn_ext.errors.UserError: the image a.png is damaged: truncated\n"
    )
    assert cli._one_line(UserError(text)) == "the image a.png is damaged: truncated"


def test_show_prints_a_recipe_that_trains_the_same(capsys, tmp_path):
    arguments = ["train", "faster_rcnn_synthetic", "--show", "seed=3"]
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    (tmp_path / "mine.yaml").write_text(out)
    assert run(capsys, "train", tmp_path / "mine.yaml", "--show")[1] == out
    assert "seed: 3\n" in out


def test_overrides_may_stand_anywhere(capsys):
    first = run(capsys, "train", "faster_rcnn_synthetic", "seed=3", "--show", "data.workers=5")
    last = run(capsys, "train", "faster_rcnn_synthetic", "--show", "seed=3", "data.workers=5")
    assert first == last
    assert "workers: 5" in first[1]


def test_eval_prints_and_writes_the_metrics(capsys, tiny_run, tmp_path):
    code, out, _ = run(capsys, "eval", tiny_run.out, "--data", tiny_run.data, "--out", tmp_path)
    assert code == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    numbers = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
    numbers += ["AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"]
    for name in numbers:
        shown = "-" if metrics[name] is None else f"{metrics[name]:.3f}"
        assert re.search(rf"^{name} +{shown} ", out, re.MULTILINE), name
    assert metrics["images"] == 4
    assert set(metrics["per_class"]) == {"circle", "square", "triangle"}
    truth = json.loads((tiny_run.data / "annotations" / "instances_val.json").read_text())
    assert metrics["objects"] == len(truth["annotations"])


def test_eval_gives_what_the_last_validation_gave(capsys, tiny_run, tmp_path):
    run(capsys, "eval", tiny_run.out / "last.ckpt", "--data", tiny_run.data, "--out", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    header, *rows = (tiny_run.out / "validation.csv").read_text().splitlines()
    last = dict(zip(header.split(","), rows[-1].split(","), strict=True))
    assert metrics["step"] == int(last["step"])
    assert metrics["AP"] == pytest.approx(float(last["AP"]), abs=1e-9)
    assert metrics["AR100"] == pytest.approx(float(last["AR100"]), abs=1e-9)


def test_eval_of_other_files(capsys, tiny_run, tmp_path):
    annotations = tiny_run.data / "annotations" / "instances_train.json"
    code, out, _ = run(
        capsys, "eval", tiny_run.out, "--data", tiny_run.data, "--out", tmp_path,
        "--annotations", os.path.relpath(annotations), "--images", tiny_run.data / "train",
    )  # fmt: skip
    assert code == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["images"] == 8
    code, _, _ = run(
        capsys, "eval", tiny_run.out, "--data", tiny_run.data, "--out", tmp_path, "--split", "train"
    )
    assert json.loads((tmp_path / "metrics.json").read_text())["images"] == 8


def test_detect_runs_on_the_base_installation(tiny_run, tmp_path):
    script = textwrap.dedent(
        f"""
        import sys
        for name in {EXTRA!r}:
            sys.modules[name] = None  # Importing it raises ModuleNotFoundError.
        from rcnn_ext.cli import main
        sys.exit(main(sys.argv[1:]))
        """
    )
    image = tiny_run.data / "val" / "000001.png"
    finished = python("-c", script, "detect", tiny_run.out, image, "--out", tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "pictures" / "000001.jpg").is_file()

    arguments = [
        "train",
        "faster_rcnn_synthetic",
        "--data",
        tmp_path / "d",
        "--out",
        tmp_path / "o",
    ]
    finished = python("-c", script, *arguments)
    assert finished.returncode == 2
    assert finished.stderr.splitlines() == [
        "rcnn-ext: this command needs yaml, which is not installed: pip install 'rcnn-ext[train]'"
    ]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for other processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_to_all_processes_stops_training_and_its_workers(tiny_run, tmp_path, number):
    """As terminals and batch systems do it: to the whole process group, workers included."""
    command = [
        sys.executable, "-m", "rcnn_ext", "train", "faster_rcnn_synthetic",
        "--data", str(tiny_run.data), "--out", str(tmp_path / "out"),
        *tiny_run.overrides, "data.workers=2", "evaluation.val_every=0", "runtime.log_every=1",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    log = tmp_path / "out" / "losses.csv"
    limit = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < limit:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    saved = tmp_path / "out" / "last.ckpt"
    command = f"rcnn-ext train --data {tiny_run.data} --out {tmp_path / 'out'} --resume"
    expected = f"rcnn-ext: stopped; saved {saved}; continue with: {command}"
    assert errors.splitlines()[-1] == expected
    assert saved.is_file()


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real images are not in {REAL}")
def test_real_images_train_evaluate_and_detect(capsys, tmp_path, one_thread):
    small = ["model.min_size=96", "model.max_size=128", "data.batch_size=2", "data.workers=0"]
    small += ["model.pool_size=2", "evaluation.max_images=4", "evaluation.val_every=0"]
    out = tmp_path / "out"
    code, _, errors = run(
        capsys, "train", "faster_rcnn_coco_small", "--data", REAL, "--out", out,
        "--max-steps", "3", *small,
    )  # fmt: skip
    assert code == 0, errors
    code, table, errors = run(capsys, "eval", out, "--data", REAL)
    assert code == 0, errors
    assert "32 images, 225 objects of 80 classes" in table
    images = sorted((REAL / "images").iterdir())[:2]
    code, _, errors = run(capsys, "detect", out, *images, "--out", tmp_path / "found")
    assert code == 0, errors
    assert sorted(os.listdir(tmp_path / "found" / "pictures")) == [image.name for image in images]
    assert {path.name for path in images} == {"000000000009.jpg", "000000000025.jpg"}
    for entry in json.loads((tmp_path / "found" / "detections.json").read_text()):
        assert entry["image_id"] in (9, 25)
        assert 1 <= entry["category_id"] <= 90
