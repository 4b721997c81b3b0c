"""Lightning's trainer for a phase of a run, and what it prints."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy

from rcnn_ext.config import RuntimeConfig
from rcnn_ext.distributed import Processes
from rcnn_ext.errors import UserError
from rcnn_ext.train.checkpoint_io import AtomicCheckpointIO
from rcnn_ext.train.phases import Phase

# Those that Lightning or the callbacks handle; the last is Slurm's notice that a job is requeued.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM))


def build_trainer(
    runtime: RuntimeConfig,
    phase: Phase,
    out: Path,
    processes: Processes,
    device: torch.device,
    *,
    loggers: Sequence[Logger],
    callbacks: list[pl.Callback],
) -> pl.Trainer:
    """Build the trainer of a phase.

    Raises:
        UserError: The device does not have the precision.
    """
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=_devices(processes, device),
        num_nodes=processes.machines,
        strategy=DDPStrategy() if processes.count > 1 else "auto",
        sync_batchnorm=runtime.sync_batch_norm and processes.count > 1,
        precision=_precision(runtime.precision, device),
        max_steps=phase.schedule.num_steps,
        max_epochs=-1,
        num_sanity_val_steps=0,
        gradient_clip_val=phase.optimizer.clip_norm,
        accumulate_grad_batches=phase.optimizer.accumulate_grad_batches,
        default_root_dir=out,
        use_distributed_sampler=False,
        logger=list(loggers),
        plugins=[AtomicCheckpointIO()],
        # Among them `Checkpoints` and `Logs`, which take the places of ModelCheckpoint and
        # EarlyStopping, and of TQDMProgressBar, and say why.
        callbacks=callbacks,
        enable_model_summary=False,
    )


def _devices(processes: Processes, device: torch.device) -> Any:
    if processes.count == 1 and device.type == "cuda":
        return [device.index or 0]
    return processes.local_count


def _precision(name: str, device: torch.device) -> Any:
    on_gpu = device.type == "cuda"
    if name == "16" and not on_gpu:
        raise UserError("runtime.precision=16 needs a GPU; bf16 and 32 run anywhere")
    if name == "auto":
        mixed = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "16"
        name = mixed if on_gpu else "32"
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[name]


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hide Lightning's messages about its own set-up; errors and other warnings stay."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for text in (
                ".*does not have many workers.*",
                ".*module.* in eval mode at the start of training.*",
                ".*have no `val_dataloader`.*",
                ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
            ):
                warnings.filterwarnings("ignore", message=text)
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def restored_signal_handlers() -> Iterator[None]:
    """Leave the handlers of signals as they were.

    Those of Lightning, and of the callback that saves on signals, refer to the trainer, and so to
    the model. Lightning puts back what it had found when it began, which may be the callback's: it
    would stay, and with it every model that was ever trained in this process. After one Ctrl-C it
    also ignores all further ones.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may set handlers.
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # One that was set outside of Python.
                signal.signal(number, handler)
