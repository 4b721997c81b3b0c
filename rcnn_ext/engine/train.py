"""Training a detector by a recipe, with Lightning."""

from __future__ import annotations

import dataclasses
import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from ..data.annotations import AnnotationSet
from ..data.dataset import (
    DetectionDataset,
    Sample,
    TrainingStream,
    evaluation_loader,
    mixed_seed,
    training_loader,
)
from ..data.transforms import build_augmentation
from ..errors import UserError
from ..files import make_folder, write_text
from ..recipes import Recipe, recipe_to_yaml
from .build import build_model
from .callbacks import Checkpoints, LossLog, StopTraining, read_csv
from .checkpoint import BEST, LAST, choose_device, load_checkpoint
from .metrics import EvaluationResult
from .module import DetectionModule
from .splits import first_images, open_split, open_validation

LOSSES, VALIDATION, RECIPE = "losses.csv", "validation.csv", "recipe.yaml"
_LOSS_CURVE = "losses.png"


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal, after it saved a checkpoint.

    Attributes:
        signal_number: The signal.
    """

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        super().__init__(f"stopped; saved {checkpoint}, --resume goes on from there")
        self.signal_number = signal_number


@dataclass(frozen=True)
class TrainingResult:
    """What a training run left behind.

    Attributes:
        folder: Where its files are.
        steps: Number of steps, those of the runs it continued included.
        first_loss: Mean loss over the first line of ``losses.csv``.
        last_loss: Mean loss over the last line.
        seconds_per_step: Over the last line.
        validation: The last validation of this run, if there was one.
        best: The best AP of all validations.
    """

    folder: Path
    steps: int
    first_loss: float
    last_loss: float
    seconds_per_step: float
    validation: EvaluationResult | None
    best: float | None

    def summary(self) -> str:
        """A line or two for people."""
        lines = [
            f"{self.steps} steps, loss {self.first_loss:.3f} at first, {self.last_loss:.3f} "
            f"at last, {self.seconds_per_step:.2f} s a step"
        ]
        if self.validation is not None:
            shown = {
                name: "-" if value is None else f"{value:.3f}"
                for name, value in self.validation.summary.items()
            }
            best = "" if self.best is None else f"; best AP {self.best:.3f}"
            lines.append(f"at the end AP {shown['AP']}, AP50 {shown['AP50']}{best}")
        return "\n".join(lines)


def train(
    recipe: Recipe, data: Path, out: Path, *, resume: bool = False, overwrite: bool = False
) -> TrainingResult:
    """Trains a detector.

    Writes to ``out``: ``last.ckpt`` and ``best.ckpt``, ``losses.csv`` and ``losses.png``,
    ``validation.csv`` and ``recipe.yaml``, which holds every value that was used.

    Args:
        recipe: What to train and how.
        data: The data folder.
        out: Where results go; made if need be.
        resume: Whether to go on from ``last.ckpt`` in ``out``. The run gives the same losses as one
            that was not interrupted.
        overwrite: Whether an earlier run in ``out`` may be replaced.

    Raises:
        UserError: Something about the recipe, the data or ``out`` is wrong, or a loss is not
            finite.
        Interrupted: A signal stopped it, after it saved ``last.ckpt``.
    """
    device = choose_device(recipe.runtime.device)
    _prepare_folder(out, resume, overwrite)
    annotations = open_split(recipe.data, data, "train")
    print(f"training: {annotations.summary()}")
    validation = open_validation(recipe.data, data, annotations.classes.names)
    if validation is None:
        print("validation: the data have no validation split; best.ckpt will not be written")
    else:
        print(f"validation: {validation.summary()}")

    start = 0
    if resume:
        start = _check_resumable(out, recipe, annotations)
    write_text(out / RECIPE, recipe_to_yaml(recipe))
    torch.manual_seed(mixed_seed(recipe.seed, 3))
    model = build_model(recipe.model, annotations.classes.num_classes)
    _print_size(model)
    module = DetectionModule(model, recipe, annotations.classes)
    stream = TrainingStream(
        annotations,
        build_augmentation(recipe.data.augment),
        recipe.seed,
        recipe.data.keep_empty,
    )
    checkpoints = _fit(module, stream, validation, out, device, start, resume)
    rows = read_csv(out / LOSSES)
    _draw_loss_curve(out)
    return TrainingResult(
        folder=out,
        steps=int(rows[-1]["step"]),
        first_loss=float(rows[0]["loss"]),
        last_loss=float(rows[-1]["loss"]),
        seconds_per_step=float(rows[-1]["seconds_per_step"]),
        validation=module.result,
        best=checkpoints.best,
    )


def _fit(
    module: DetectionModule,
    stream: TrainingStream,
    validation: AnnotationSet | None,
    out: Path,
    device: torch.device,
    start: int,
    resume: bool,
) -> Checkpoints:
    recipe = module.recipe
    steps, every = recipe.schedule.steps, recipe.evaluation.every
    runtime = recipe.runtime
    pin = device.type == "cuda"
    batches = training_loader(stream, recipe.data.batch_size, recipe.data.workers, start, pin)
    val_batches: DataLoader[Sample] | None = None
    if validation is not None:
        subset = DetectionDataset(first_images(validation, recipe.evaluation.max_images))
        val_batches = evaluation_loader(
            subset, recipe.evaluation.batch_size, recipe.data.workers, pin
        )
    checkpoints = Checkpoints(out, runtime.checkpoint_every, every, steps)
    log = LossLog(
        out / LOSSES,
        # A short run still gets lines enough to see whether its losses fall.
        max(1, min(runtime.log_every, steps // 10)),
        steps,
        recipe.data.batch_size,
        stream.images_per_epoch,
    )
    with _quiet_lightning():
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision=_precision(runtime.precision, device),
            max_steps=steps,
            max_epochs=-1,
            val_check_interval=every or steps + 1,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            gradient_clip_val=recipe.optimizer.clip_norm,
            default_root_dir=out,
            use_distributed_sampler=False,
            # The callbacks below do these, with files that are readable at any moment.
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[log, checkpoints],
        )
        try:
            trainer.fit(
                module,
                batches,
                val_batches,
                ckpt_path=out / LAST if resume else None,
                weights_only=True,
            )
        except StopTraining as stop:
            raise Interrupted(stop.signal_number, out / LAST) from None
        except SystemExit:
            # Lightning turns a Ctrl-C that comes outside the steps, or a second one, into this.
            raise KeyboardInterrupt from None
        except torch.OutOfMemoryError as error:
            raise UserError(
                "the GPU has too little memory for this recipe; "
                f"try data.batch_size={max(1, recipe.data.batch_size // 2)}"
            ) from error
    return checkpoints


def _prepare_folder(out: Path, resume: bool, overwrite: bool) -> None:
    make_folder(out)
    earlier = [out / name for name in (LAST, BEST, LOSSES, VALIDATION, RECIPE, _LOSS_CURVE)]
    if resume:
        if not (out / LAST).is_file():
            raise UserError(f"nothing to resume: {out / LAST} does not exist")
        return
    if any(path.exists() for path in earlier):
        if not overwrite:
            raise UserError(
                f"{out} holds a training run; continue it with --resume, replace it with "
                "--overwrite, or name another --out"
            )
        for path in earlier:
            path.unlink(missing_ok=True)


def _check_resumable(out: Path, recipe: Recipe, annotations: AnnotationSet) -> int:
    """Checks that the weights in ``last.ckpt`` fit, and returns the number of steps done."""
    saved = load_checkpoint(out / LAST)
    if saved.classes != annotations.classes:
        raise UserError(
            f"{out / LAST} was trained for other classes: {', '.join(saved.classes.names)}"
        )
    before = dataclasses.asdict(saved.recipe.model)
    now = dataclasses.asdict(recipe.model)
    changed = [f"model.{key}" for key in now if now[key] != before[key]]
    if recipe.optimizer.name != saved.recipe.optimizer.name:
        changed.append("optimizer.name")
    if recipe.data.batch_size != saved.recipe.data.batch_size:
        changed.append("data.batch_size")
    if changed:
        raise UserError(
            f"a resumed run cannot change {', '.join(changed)}; {out / RECIPE} has what it was "
            "started with"
        )
    if saved.step >= recipe.schedule.steps:
        raise UserError(
            f"{out / LAST} has {saved.step} steps already; "
            f"a larger schedule.steps than {recipe.schedule.steps} goes on from there"
        )
    return saved.step


def _precision(name: str, device: torch.device) -> Any:
    on_gpu = device.type == "cuda"
    if name == "16" and not on_gpu:
        raise UserError("runtime.precision=16 needs a GPU; bf16 and 32 run anywhere")
    if name == "auto":
        mixed = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "16"
        name = mixed if on_gpu else "32"
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[name]


def _print_size(model: torch.nn.Module) -> None:
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    total = sum(size for size, _ in sizes) / 1e6
    learning = sum(size for size, learns in sizes if learns) / 1e6
    print(f"model: {total:.1f} million parameters, {learning:.1f} million of them learn")


def _draw_loss_curve(out: Path) -> None:
    try:
        from ..viz import plot_losses

        plot_losses(read_csv(out / LOSSES), out / _LOSS_CURVE)
    except ModuleNotFoundError:
        pass  # matplotlib; the numbers are in the CSV file.


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Hides what Lightning says of its own set-up; its errors stay."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    interrupt = signal.getsignal(signal.SIGINT)
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
        # Lightning ignores further Ctrl-C after handling one.
        signal.signal(signal.SIGINT, interrupt)
