"""Training a model by a recipe, with Lightning."""

from __future__ import annotations

import dataclasses
import logging
import math
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from rcnn_ext.config import Recipe, recipe_to_yaml
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.dataset import DetectionDataset, mixed_seed
from rcnn_ext.data.splits import STREAMED, has_validation, open_evaluation
from rcnn_ext.distributed import Processes, choose_device
from rcnn_ext.errors import UserError
from rcnn_ext.files import write_text
from rcnn_ext.metrics.coco import EvaluationResult
from rcnn_ext.metrics.evaluate import evaluate
from rcnn_ext.metrics.tasks import compute_metrics
from rcnn_ext.models.from_config import build_model
from rcnn_ext.predict.checkpoint import LAST, SavedDetector
from rcnn_ext.selective_search.from_config import open_proposals
from rcnn_ext.train.callbacks import Checkpoints, StopTraining, Validate
from rcnn_ext.train.logs import LOSSES, Logs, read_csv
from rcnn_ext.train.module import DetectionModule
from rcnn_ext.train.phases import Phase, RunState, all_phases
from rcnn_ext.train.resume import LOSS_CURVE, RECIPE, check_resumable, prepare_folder
from rcnn_ext.train.training_data import open_training


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
        best: The best score of all validations.
        skipped: Steps that were skipped for a loss or gradient that was not finite.
    """

    folder: Path
    steps: int
    first_loss: float
    last_loss: float
    seconds_per_step: float
    validation: EvaluationResult | None
    best: float | None
    skipped: int = 0

    def summary(self) -> str:
        """A line or two for people."""
        lines = [
            f"{self.steps} steps, loss {self.first_loss:.3f} at first, {self.last_loss:.3f} "
            f"at last, {self.seconds_per_step:.2f} s a step"
        ]
        if self.skipped:
            lines[0] += f", {self.skipped} steps skipped"
        if self.validation is not None:
            best = "" if self.best is None else f"; best {self.best:.3f}"
            lines.append(f"at the end {self.validation.line()}{best}")
        return "\n".join(lines)


def train(
    recipe: Recipe, data: Path, out: Path, *, resume: bool = False, overwrite: bool = False
) -> TrainingResult | None:
    """Trains a model, in one process or in all that torchrun started.

    Writes to ``out``: ``last.ckpt`` and ``best.ckpt``, ``losses.csv`` and ``losses.png``,
    ``validation.csv``, ``tensorboard/`` and ``recipe.yaml``, which holds every value that was used.

    Args:
        recipe: What to train and how.
        data: The data folder. All processes read it.
        out: Where results go; made if need be. All processes must see it when a run is resumed.
        resume: Whether to go on from ``last.ckpt`` in ``out``. The run gives the same losses as one
            that was not interrupted, also with another number of processes.
        overwrite: Whether an earlier run in ``out`` may be replaced.

    Returns:
        What the run left behind; None in all processes but the first.

    Raises:
        UserError: Something about the recipe, the data or ``out`` is wrong, or a loss is not
            finite.
        Interrupted: A signal stopped it, after it saved ``last.ckpt``.
    """
    processes = Processes.from_environment()
    device = choose_device(recipe.runtime.device, processes)
    _check_shares(recipe, processes)
    with processes.group(device):
        return _Run(recipe, data, out, processes, device).go(resume, overwrite)


class _Run:
    """What the phases of a run have in common."""

    def __init__(
        self, recipe: Recipe, data: Path, out: Path, processes: Processes, device: torch.device
    ) -> None:
        self.recipe = recipe
        self.data = data
        self.out = out
        self.processes = processes
        self.device = device

    def go(self, resume: bool, overwrite: bool) -> TrainingResult | None:
        recipe, processes, out = self.recipe, self.processes, self.out
        with processes.main_process_first():
            if processes.is_main_process:
                prepare_folder(out, resume, overwrite)
            self.training = open_training(recipe, self.data)
        processes.print_once(f"training: {self.training.summary()}")
        self.classes = self.training.classes
        recipe = self.recipe = self.training.resolve_recipe(recipe, processes)
        with processes.main_process_first():
            found = self._open_validation()
        self.proposals = open_proposals(recipe, out)
        if self.proposals is not None:
            sets = (self.training.annotations, found)
            self.proposals.prepare([one for one in sets if one is not None], processes)
        validate = self._validation(found)
        saved, state = None, RunState()
        if resume:
            saved, state = check_resumable(out, recipe, self.classes)
        if processes.is_main_process:
            write_text(out / RECIPE, recipe_to_yaml(recipe))
        torch.manual_seed(mixed_seed(recipe.seed, 3))
        model = build_model(recipe.model, self.classes.num_classes, pretrained=saved is None)
        images_per_epoch = self.training.begin(recipe, self.proposals)
        phases = all_phases(recipe)
        # A short run still gets lines enough to see whether its losses fall.
        every = max(1, min(recipe.runtime.log_every, phases[-1].end // 10))
        self.logs = Logs(
            out,
            every,
            phases[-1].end,
            images_per_epoch,
            tensorboard=recipe.runtime.tensorboard,
            writes=processes.is_main_process,
        )
        self.checkpoints = Checkpoints(
            out, recipe.runtime.checkpoint_every, recipe.evaluation.val_every, validate, self.logs
        )
        self._train_phases(model, phases, saved, state)
        if not processes.is_main_process:
            return None
        rows = read_csv(out / LOSSES)
        _draw_loss_curve(out)
        return TrainingResult(
            folder=out,
            steps=int(rows[-1]["step"]),
            first_loss=float(rows[0]["loss"]),
            last_loss=float(rows[-1]["loss"]),
            seconds_per_step=float(rows[-1]["seconds_per_step"]),
            validation=self.checkpoints.result,
            best=state.best,
            skipped=state.skipped,
        )

    def _open_validation(self) -> AnnotationSet | None:
        """The images that validations look at, or None where the data have no such split."""
        config, data = self.recipe.data, self.data
        if not has_validation(config, data):
            _check_no_validation_needed(self.recipe)
            self.processes.print_once(
                "validation: the data have no validation split; best.ckpt will not be written"
            )
            return None
        most = self.recipe.evaluation.max_images
        found = open_evaluation(config, data, "val", self.classes.names, self.out / STREAMED, most)
        self.processes.print_once(f"validation: {found.summary()}")
        return found

    def _validation(self, images: AnnotationSet | None) -> Validate | None:
        """What validates a model on these images."""
        if images is None:
            return None
        dataset = DetectionDataset(images, self.proposals)
        config = self.recipe.evaluation

        def validate(model: nn.Module, after_batch: Callable[[], None]) -> EvaluationResult | None:
            results = evaluate(
                model,
                dataset,
                device=self.device,
                batch_size=config.batch_size,
                workers=self.recipe.data.workers,
                processes=self.processes,
                after_batch=after_batch,
            )
            if not self.processes.is_main_process:
                return None
            return compute_metrics(model, results, self.classes)

        return validate

    def _train_phases(
        self, model: nn.Module, phases: list[Phase], saved: SavedDetector | None, state: RunState
    ) -> None:
        done = 0
        if saved is not None:
            done = saved.step
            model.load_state_dict(saved.weights)
            self.training.resume(self.recipe, done, state.processes, self.processes)
        state.processes = self.processes.count
        self.logs.open(done)
        try:
            for phase in phases:
                if phase.index < state.phase:
                    continue
                if phase.index > state.phase:
                    state.next_phase(done)
                    self.logs.message(f"The next phase begins after step {done}")
                if state.ended:
                    continue
                phase = dataclasses.replace(phase, start=state.phase_start)
                phase.prepare(model)
                if self.processes.is_main_process:
                    self.logs.message(_size(model))
                done = self._fit(model, phase, state, done)
        finally:
            self.logs.close()

    def _fit(self, model: nn.Module, phase: Phase, state: RunState, done: int) -> int:
        """Trains a phase from the step ``done``, and returns the step at which it ended."""
        recipe, processes, runtime = self.recipe, self.processes, self.recipe.runtime
        module = DetectionModule(model, recipe, self.classes, phase, state, processes)
        parts = phase.optimizer.accumulate_grad_batches
        batches = self.training.loader(recipe, parts, done, processes, self.device)
        with _quiet_lightning():
            trainer = pl.Trainer(
                accelerator="gpu" if self.device.type == "cuda" else "cpu",
                devices=_devices(processes, self.device),
                num_nodes=processes.machines,
                strategy=DDPStrategy() if processes.count > 1 else "auto",
                sync_batchnorm=runtime.sync_batch_norm and processes.count > 1,
                precision=_precision(runtime.precision, self.device),
                max_steps=phase.schedule.steps,
                max_epochs=-1,
                num_sanity_val_steps=0,
                gradient_clip_val=phase.optimizer.clip_norm,
                accumulate_grad_batches=parts,
                default_root_dir=self.out,
                use_distributed_sampler=False,
                # The callbacks do these, with files that are readable at any moment.
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[self.logs, self.checkpoints],
            )
            try:
                trainer.fit(
                    module,
                    batches,
                    ckpt_path=self.out / LAST if done > phase.start else None,
                    weights_only=True,
                )
                self.checkpoints.finish(trainer, module, self.device)
            except StopTraining as stop:
                raise Interrupted(stop.signal_number, self.out / LAST) from None
            except SystemExit:
                # Lightning turns a Ctrl-C that comes outside the steps, or a second one, into this.
                raise KeyboardInterrupt from None
            except torch.OutOfMemoryError as error:
                raise UserError(
                    "the GPU has too little memory for this recipe; "
                    f"try optimizer.accumulate_grad_batches={2 * parts}, "
                    "or a smaller data.batch_size"
                ) from error
        return module.steps_done


def _devices(processes: Processes, device: torch.device) -> Any:
    if processes.count == 1 and device.type == "cuda":
        return [device.index or 0]
    return processes.local_count


def _check_shares(recipe: Recipe, processes: Processes) -> None:
    phases = {"optimizer": recipe.optimizer}
    if recipe.refine is not None:
        phases["refine.optimizer"] = recipe.refine.optimizer
    for key, optimizer in phases.items():
        shares = processes.count * optimizer.accumulate_grad_batches
        if recipe.data.batch_size % shares:
            each = math.ceil(recipe.data.batch_size / shares) * shares
            raise UserError(
                f"data.batch_size={recipe.data.batch_size} images cannot be divided among "
                f"{processes.count} processes and {key}.accumulate_grad_batches="
                f"{optimizer.accumulate_grad_batches} parts; try data.batch_size={each}"
            )


def _check_no_validation_needed(recipe: Recipe) -> None:
    phases = {"schedule": recipe.schedule}
    if recipe.refine is not None:
        phases["refine.schedule"] = recipe.refine.schedule
    for key, schedule in phases.items():
        if schedule.decay == "plateau":
            raise UserError(f"{key}.decay=plateau needs a validation split, and the data have none")
    if recipe.evaluation.patience is not None:
        raise UserError("evaluation.patience needs a validation split, and the data have none")


def _precision(name: str, device: torch.device) -> Any:
    on_gpu = device.type == "cuda"
    if name == "16" and not on_gpu:
        raise UserError("runtime.precision=16 needs a GPU; bf16 and 32 run anywhere")
    if name == "auto":
        mixed = "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "16"
        name = mixed if on_gpu else "32"
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[name]


def _size(model: nn.Module) -> str:
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    total = sum(size for size, _ in sizes) / 1e6
    learning = sum(size for size, learns in sizes if learns) / 1e6
    return f"model: {total:.1f} million parameters, {learning:.1f} million of them learn"


def _draw_loss_curve(out: Path) -> None:
    try:
        from rcnn_ext.viz import plot_losses

        plot_losses(read_csv(out / LOSSES), out / LOSS_CURVE)
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
