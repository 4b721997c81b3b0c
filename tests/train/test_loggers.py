"""Losses and metrics go to each logger that a recipe names, and go on after a resume."""

from __future__ import annotations

import csv
import struct
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="lightning comes with the extra train")

from lightning.pytorch.utilities import rank_zero_only

from rcnn_ext.cli import main
from rcnn_ext.config import RuntimeConfig, load_recipe
from rcnn_ext.errors import UserError
from rcnn_ext.predict.checkpoint import load_checkpoint
from rcnn_ext.train.loggers import CsvLogger, build_loggers, check_loggers, close_loggers
from tests.helpers.made_data import as_csv


def train(run, out, loggers, *more, steps):
    paths = ["--data", str(run.data), "--out", str(out), "--max-steps", str(steps)]
    options = (f"runtime.loggers={loggers}", "data.format=coco", *more)
    return main(["train", "faster_rcnn_synthetic", *paths, *run.overrides, *options])


def losses(out):
    with (out / "losses.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def wandb_records(path):
    """Yield the records of an offline run: LevelDB's log format after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += 7 + length
        record += content[position - length : position]
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


@pytest.fixture
def offline_wandb(monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb comes with the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return wandb


def wandb_history(out):
    """Return what a run logged, a dict per call, and the keys of its configuration."""
    identity = load_checkpoint(out / "last.ckpt").state["logger_runs"]["wandb"]
    history, config = [], set()
    for path in sorted((out / "wandb").glob(f"offline-run-*/run-{identity}.wandb")):
        for record in wandb_records(path):
            config |= {item.key for item in record.run.config.update}
            config |= {item.key for item in record.config.update}
            items = record.history.item
            row = {item.key or "/".join(item.nested_key): item.value_json for item in items}
            if row:
                history.append({name: float(value) for name, value in row.items()})
    return history, config


def test_weights_and_biases_gets_losses_metrics_and_the_recipe(tiny_run, tmp_path, offline_wandb):
    out = tmp_path / "out"
    assert train(tiny_run, out, "[csv, wandb]", steps=2) == 0
    assert offline_wandb.run is None, "the run is finished"
    assert train(tiny_run, out, "[csv, wandb]", "--resume", steps=3) == 0
    history, config = wandb_history(out)
    logged = [row for row in history if "training/loss" in row]
    assert [row["trainer/global_step"] for row in logged] == [1, 2, 3]
    assert [row["training/loss"] for row in logged] == pytest.approx(losses(out), abs=1e-5)
    validated = [row["trainer/global_step"] for row in history if "validation/AP" in row]
    assert validated == [2, 3]
    assert {"model", "optimizer", "schedule"} <= config


def test_the_localizer_logs_to_weights_and_biases(tmp_path, offline_wandb, one_thread):
    data, out = as_csv(tmp_path / "data"), tmp_path / "out"
    paths = ["--data", str(data), "--out", str(out), "--max-steps", "2"]
    options = (
        "runtime.loggers=[csv, wandb]",
        "runtime.device=cpu",
        "runtime.precision=32",
        "model.backbone=cnn",
        "model.weights_backbone=null",
        "model.fixed_size=[64, 64]",
        "optimizer.lr_overrides={}",
        "data.batch_size=4",
        "data.workers=0",
    )
    assert main(["train", "localizer_csv", *paths, *options]) == 0
    history, config = wandb_history(out)
    logged = [row["training/loss"] for row in history if "training/loss" in row]
    assert logged == pytest.approx(losses(out), abs=1e-5)
    (validated,) = (row for row in history if "validation/score" in row)
    assert {"validation/accuracy", "validation/IoU", "validation/IoU50"} <= set(validated)
    assert "model" in config


def test_mlflow_gets_losses_metrics_and_the_recipe(tiny_run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow comes with the extra mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    assert train(tiny_run, out, "[csv, mlflow]", steps=2) == 0
    assert train(tiny_run, out, "[csv, mlflow]", "--resume", steps=3) == 0
    identity = load_checkpoint(out / "last.ckpt").state["logger_runs"]["mlflow"]
    client = mlflow.MlflowClient(f"sqlite:///{out}/mlflow.db")
    history = client.get_metric_history(identity, "training/loss")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert [metric.value for metric in history] == pytest.approx(losses(out), abs=1e-5)
    assert [m.step for m in client.get_metric_history(identity, "validation/AP50")] == [2, 3]
    run = client.get_run(identity)
    assert run.info.status == "FINISHED"
    assert run.data.params["model/detector"] == "faster_rcnn"
    assert not (tmp_path / "mlruns").exists(), "everything is in the folder of the run"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_told(tiny_run, tmp_path, capsys, monkeypatch, name):
    import lightning.pytorch.loggers.mlflow
    import lightning.pytorch.loggers.wandb

    module = getattr(lightning.pytorch.loggers, name)
    monkeypatch.setattr(module, f"_{name.upper()}_AVAILABLE", False)
    monkeypatch.setitem(sys.modules, name, None)
    assert train(tiny_run, tmp_path / "out", f"[csv, {name}]", steps=1) == 2
    assert f"{name} is not installed: pip install 'rcnn-ext[{name}]'" in capsys.readouterr().err


def test_a_missing_package_is_told_before_anything_is_replaced(
    tiny_run, tmp_path, capsys, monkeypatch
):
    (tmp_path / "losses.csv").write_text("step,loss\n1,0.5\n")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train(tiny_run, tmp_path, "[csv, wandb]", "--overwrite", steps=1) == 2
    assert "wandb is not installed" in capsys.readouterr().err
    assert (tmp_path / "losses.csv").read_text() == "step,loss\n1,0.5\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'mlflow'", name="mlflow"), "mlflow is not installed"),
        (
            ModuleNotFoundError("No module named 'numpi'", name="numpi"),
            "mlflow cannot be imported: No module named 'numpi'",
        ),
        (ImportError("too old\nmore"), "mlflow cannot be imported: too old$"),
    ],
)
def test_what_cannot_be_imported_is_named(monkeypatch, error, message):
    class Fails:
        def find_spec(self, name, path=None, target=None):
            if name == "mlflow":
                raise error

    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Fails(), *sys.meta_path])
    with pytest.raises(UserError, match=f"^runtime.loggers names mlflow, but {message}"):
        check_loggers(RuntimeConfig(loggers=["csv", "mlflow"]))


def test_tensorboard_that_is_too_old_is_left_out(tmp_path, capsys, monkeypatch):
    # As torch.utils.tensorboard fails: an ImportError that names no missing module.
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", type(sys)("tensorboard"))
    loggers = build_loggers(RuntimeConfig(loggers=["csv", "tensorboard"]), tmp_path, 0, {})
    assert [type(logger) for logger in loggers] == [CsvLogger]
    assert "TensorBoard logs are left out" in capsys.readouterr().out


def test_a_rank_that_only_lightning_sees_changes_nothing(tiny_run, tmp_path, monkeypatch):
    # As srun without torchrun: every process trains alone, whatever Slurm calls it.
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert train(tiny_run, tmp_path, "[csv]", "evaluation.val_every=0", steps=2) == 0
    assert len(losses(tmp_path)) == 2


def test_a_wandb_run_that_never_began_is_not_begun_to_end_it(tmp_path, offline_wandb):
    loggers = build_loggers(RuntimeConfig(loggers=["csv", "wandb"]), tmp_path, 0, {})
    close_loggers(loggers, failed=False)
    assert not (tmp_path / "wandb").exists()


@pytest.mark.parametrize("failed", [False, True])
def test_a_run_that_failed_is_marked(tmp_path, offline_wandb, monkeypatch, failed):
    loggers = build_loggers(RuntimeConfig(loggers=["csv", "wandb"]), tmp_path, 0, {})
    kind, codes = type(loggers[1].experiment), []
    finish = kind.finish

    def record(self, exit_code=None):
        codes.append(exit_code)
        finish(self, exit_code)

    monkeypatch.setattr(kind, "finish", record)
    close_loggers(loggers, failed=failed)
    assert codes == [int(failed)]
    assert offline_wandb.run is None


def test_a_server_of_mlflow_chooses_where_artifacts_go(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow comes with the extra mlflow")
    uri = f"sqlite:///{tmp_path}/server.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.chdir(tmp_path)
    ids = {}
    build_loggers(RuntimeConfig(loggers=["csv", "mlflow"]), tmp_path / "out", 0, ids)
    run = mlflow.MlflowClient(uri).get_run(ids["mlflow"])
    assert str(tmp_path / "out") not in run.info.artifact_uri


def test_a_run_in_the_current_folder_is_named_after_it(tmp_path, monkeypatch, offline_wandb):
    monkeypatch.chdir(tmp_path)
    loggers = build_loggers(RuntimeConfig(loggers=["csv", "wandb"]), Path(), 0, {})
    assert loggers[1].name == "rcnn-ext"
    assert loggers[1]._wandb_init["name"] == tmp_path.name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("runtime.loggers=[tensorboard]", "runtime.loggers must be a list that has csv"),
        ("runtime.loggers=[csv, comet]", "csv, tensorboard, wandb, mlflow"),
        (
            "runtime.tensorboard=false",
            r"it is called runtime\.loggers \(a list: \[csv\] for false\) now",
        ),
    ],
)
def test_wrong_loggers_are_told(override, message):
    with pytest.raises(UserError, match=message):
        load_recipe("faster_rcnn_synthetic", [override])


def test_tables_are_whole_after_every_row_and_forget_steps_that_are_repeated(tmp_path):
    logger = CsvLogger(tmp_path, 0)
    logger.log_metrics({"training/epoch": None, "training/loss": 0.5}, 1)
    assert (tmp_path / "losses.csv").read_text() == "step,epoch,loss\n1,,0.5\n"
    logger.log_metrics({"training/epoch": None, "training/loss": 0.25}, 2)
    logger.log_metrics({"validation/AP": 0.1}, 2)
    logger.log_metrics({"validation/AP": 0.2}, 2)
    assert (tmp_path / "validation.csv").read_text() == "step,AP\n2,0.2\n"
    CsvLogger(tmp_path, 1)
    assert (tmp_path / "losses.csv").read_text() == "step,epoch,loss\n1,,0.5\n"
    with pytest.raises(ValueError, match="of training or of validation"):
        logger.log_metrics({"loss": 1.0}, 3)
