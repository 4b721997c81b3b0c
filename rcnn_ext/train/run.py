"""Train a model by a recipe, with Lightning."""

from __future__ import annotations

import dataclasses
import math
import os
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from rcnn_ext.config import Recipe, recipe_to_yaml
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.hub import HubSplit
from rcnn_ext.data.sampling import mixed_seed
from rcnn_ext.data.workers import named_worker_death
from rcnn_ext.distributed import Processes, choose_device
from rcnn_ext.errors import UserError
from rcnn_ext.files import write_text
from rcnn_ext.locks import locked_folder
from rcnn_ext.metrics.coco import EvaluationResult
from rcnn_ext.models.from_config import build_model
from rcnn_ext.models.roi_heads import set_class_weights
from rcnn_ext.predict.checkpoint import LAST
from rcnn_ext.selective_search.from_config import open_proposals
from rcnn_ext.train.callbacks import Checkpoints, StopTraining
from rcnn_ext.train.ema import UpdateAverage, WeightAverage
from rcnn_ext.train.loggers import LOSSES, build_loggers, check_loggers, read_csv
from rcnn_ext.train.logs import Logs
from rcnn_ext.train.module import DetectionModule
from rcnn_ext.train.phases import Phase, RunState, all_phases
from rcnn_ext.train.resolve import resolve_recipe, with_class_weights, with_steps_of_epochs
from rcnn_ext.train.resume import (
    LOSS_CURVE,
    RECIPE,
    check_folder,
    check_resumable,
    clear_folder,
    describe_resume,
    resume_command,
)
from rcnn_ext.train.threads import thread_hint
from rcnn_ext.train.trainer import build_trainer, quiet_lightning, restored_signal_handlers
from rcnn_ext.train.training_data import (
    describe_images,
    open_source,
    open_training,
    report_resume,
)
from rcnn_ext.train.validation import Validation, open_validation
from rcnn_ext.train.weights import (
    WEIGHTS_TABLE,
    load_weights,
    open_weights,
    with_options_of,
)

# Where the recipe leaves it open.
_LOG_EVERY = 20


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal, after it saved a checkpoint.

    Attributes:
        signal_number: The signal.
    """

    def __init__(self, signal_number: int, checkpoint: Path, command: str) -> None:
        super().__init__(f"stopped; saved {checkpoint}; continue with: {command}")
        self.signal_number = signal_number


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training run.

    Attributes:
        folder: The folder of its files.
        steps: Number of steps, those of the runs it continued included.
        first_loss: Mean loss over the first line of ``losses.csv``.
        last_loss: Mean loss over the last line.
        seconds_per_step: Mean duration of a step over the last line.
        validation: The last validation of this run, if there was one.
        best: The best score of all validations.
        skipped: Number of steps that were skipped for a loss or gradient that was not finite.
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
        """Return a line or two for people."""
        lines = [
            f"{self.steps} steps, loss {self.first_loss:.3f} at first, {self.last_loss:.3f} "
            f"at last, {self.seconds_per_step:.2f} s per step"
        ]
        if self.skipped:
            lines[0] += f", {self.skipped} steps skipped"
        if self.validation is not None:
            best = "" if self.best is None else f"; best {self.best:.3f}"
            lines.append(f"at the end {self.validation.line()}{best}")
        return "\n".join(lines)


def train(
    recipe: Recipe,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainingResult | None:
    """Train a model, in one process or in all that torchrun started.

    Writes to ``out``: ``last.ckpt`` and ``best.ckpt``, ``losses.csv`` and ``losses.png``,
    ``validation.csv``, the files of other loggers, ``recipe.yaml``, which holds every value that
    was used, and with ``model.weights`` the list of its tensors, ``weights.txt``.

    Args:
        recipe: The model and how to train it.
        data: The data folder. All processes read it.
        out: The folder for results, made if need be. All processes must see it when a run is
            resumed.
        resume: Whether to continue from ``last.ckpt`` in ``out``. The run gives the same losses as
            one that was not interrupted; with another number of processes, up to rounding.
        overwrite: Whether an earlier run in ``out`` may be replaced.

    Returns:
        The result of the run in the main process; None in all others.

    Raises:
        UserError: Something about the recipe, the data or ``out`` is wrong, another process trains
            into ``out``, or a loss is not finite.
        Interrupted: A signal stopped it, after it saved ``last.ckpt``.
    """
    processes = Processes.from_environment()
    device = choose_device(recipe.runtime.device, processes)
    _check_divisible(recipe, processes)
    check_loggers(recipe.runtime)
    # Lightning reads other variables than torchrun's too, Slurm's for instance, which may name
    # another rank; its loggers write on rank 0 only.
    rank_zero_only.rank = processes.rank  # type: ignore[attr-defined]
    lock = (
        locked_folder(Path(out), "a training run") if processes.is_main_process else nullcontext()
    )
    with processes.group(device), lock:
        paths = Path(data), Path(out)
        run = _Run(recipe, *paths, processes, device, resume=resume, overwrite=overwrite)
        return run.run()


class _Run:
    """A training run with its data, model, loggers and progress."""

    def __init__(
        self,
        recipe: Recipe,
        data: Path,
        out: Path,
        processes: Processes,
        device: torch.device,
        *,
        resume: bool,
        overwrite: bool,
    ) -> None:
        self.out = out
        self.processes = processes
        self.device = device
        self.resume_command = resume_command(data, out)
        with processes.main_process_first():
            if processes.is_main_process:
                check_folder(out, resume, overwrite)
            # Before anything slow, and before anything of an earlier run is deleted.
            weights = None if resume else open_weights(recipe.model)
            source = open_source(recipe, data)
        processes.print_once(f"training: {source.summary()}")
        self.classes = source.classes
        if weights is not None:
            model = with_options_of(recipe.model, weights)
            recipe = dataclasses.replace(recipe, model=model)
        annotations = source if isinstance(source, AnnotationSet) else None
        if isinstance(source, HubSplit):
            # With data.format=auto only the folder tells that it is a stream.
            recipe = dataclasses.replace(recipe, data=source.config)
        recipe = resolve_recipe(recipe, annotations, processes.print_once)
        recipe = with_steps_of_epochs(recipe, source, processes.print_once)
        recipe = with_class_weights(recipe, source, processes.print_once)
        self.recipe = recipe
        saved, self.state = None, RunState()
        if resume:
            saved, self.state = check_resumable(out, recipe, self.classes)
            processes.print_once(describe_resume(saved, recipe, self.state))
        if annotations is not None:
            for line in self.state.see_data(describe_images(annotations.images)):
                processes.print_once(line)
        # Weights that cannot be downloaded are to fail here, before the search for proposals,
        # which takes longest, and before anything of an earlier run is deleted.
        torch.manual_seed(mixed_seed(recipe.seed, 3))
        self.model = build_model(recipe.model, self.classes.num_classes, pretrained=saved is None)
        transfer = None
        if weights is not None:
            transfer = load_weights(self.model, weights, self.classes.names)
            for line in transfer.summary():
                processes.print_once(f"model.weights: {line}")
        class_weights = recipe.training.class_weights
        set_class_weights(self.model, class_weights if isinstance(class_weights, list) else None)
        with processes.main_process_first():
            found = open_validation(recipe, data, out, self.classes, processes)
        proposals = open_proposals(recipe, out)
        if proposals is not None:
            sets = (annotations, found)
            proposals.prepare([one for one in sets if one is not None], processes)
        if processes.is_main_process:
            if saved is None:
                clear_folder(out)
            write_text(out / RECIPE, recipe_to_yaml(recipe))
            if transfer is not None:
                write_text(out / WEIGHTS_TABLE, transfer.table())
        hint = thread_hint(processes, device, recipe.data.workers)
        if hint is not None:
            processes.print_once(hint)
        self.done = 0
        if saved is not None:
            self.done = saved.step
            self.model.load_state_dict(saved.training_weights or saved.weights)
            if annotations is None:
                report_resume(recipe, self.done, self.state.processes, processes)
        self.average: WeightAverage | None = None
        if recipe.training.ema.decay is not None:
            num_averaged = 0 if saved is None else saved.num_averaged
            self.average = WeightAverage(self.model, recipe.training.ema, device, num_averaged)
            if saved is not None and saved.training_weights is not None:
                self.average.load(saved.weights)
        self.state.processes = processes.count
        self.training = open_training(source, recipe, proposals, self.done)
        if self.training.note:
            processes.print_once(self.training.note)
        self.phases = all_phases(recipe)
        validate = None
        if found is not None:
            validate = Validation(found, proposals, recipe, self.classes, processes, device)
        # Last, since what they open is closed by run().
        self.loggers = (
            build_loggers(recipe.runtime, out, self.done, self.state.logger_runs)
            if processes.is_main_process
            else []
        )
        end = self.phases[-1].end
        self.logs = Logs(
            self.loggers,
            # A short run still gets lines enough to see whether its losses fall.
            recipe.runtime.log_every or max(1, min(_LOG_EVERY, end // 10)),
            end,
            self.training.images_per_epoch,
            done=self.done,
            is_main_process=processes.is_main_process,
        )
        self.checkpoints = Checkpoints(
            out,
            recipe.runtime.checkpoint_every,
            recipe.evaluation.val_every,
            validate,
            self.logs,
        )

    def run(self) -> TrainingResult | None:
        """Train all phases that are left."""
        failed = True
        try:
            if self.done == 0:
                for logger in self.loggers:
                    logger.log_hyperparams(dataclasses.asdict(self.recipe))
            for phase in self.phases:
                self._run_phase(phase)
            failed = False
        finally:
            self.logs.close(failed=failed)
        if not self.processes.is_main_process:
            return None
        rows = read_csv(self.out / LOSSES)
        _draw_loss_curve(self.out)
        return TrainingResult(
            folder=self.out,
            steps=int(rows[-1]["step"]),
            first_loss=float(rows[0]["loss"]),
            last_loss=float(rows[-1]["loss"]),
            seconds_per_step=float(rows[-1]["seconds_per_step"]),
            validation=self.checkpoints.result,
            best=self.state.best,
            skipped=self.state.skipped,
        )

    def _run_phase(self, phase: Phase) -> None:
        """Train a phase, unless it has ended already."""
        state = self.state
        if phase.index < state.phase:
            return
        if phase.index > state.phase:
            state.next_phase(self.done)
            self.logs.message(f"The next phase begins after step {self.done}")
        if state.ended:
            return
        phase = dataclasses.replace(phase, start=state.phase_start)
        phase.prepare(self.model)
        if self.processes.is_main_process:
            self.logs.message(_size(self.model))
        self._fit(phase)

    def _fit(self, phase: Phase) -> None:
        recipe, processes = self.recipe, self.processes
        module = DetectionModule(
            self.model, recipe, self.classes, phase, self.state, processes, self.average
        )
        update = [] if self.average is None else [UpdateAverage(self.average)]
        parts = phase.optimizer.accumulate_grad_batches
        batches = self.training.loader(parts, self.done, processes, self.device)
        with quiet_lightning(), restored_signal_handlers(), named_worker_death(self._advice):
            trainer = build_trainer(
                recipe.runtime,
                phase,
                self.out,
                processes,
                self.device,
                loggers=self.loggers,
                callbacks=[*update, self.logs, self.checkpoints],
            )
            try:
                trainer.fit(
                    module,
                    batches,
                    ckpt_path=self.out / LAST if self.done > phase.start else None,
                    weights_only=True,
                )
                self.checkpoints.run_missed_validation(trainer, module, self.device)
            except StopTraining as stop:
                raise Interrupted(
                    stop.signal_number, self.out / LAST, self.resume_command
                ) from None
            except SystemExit:
                # Lightning turns a Ctrl-C that comes outside the steps, or a second one, into this.
                raise KeyboardInterrupt from None
            except torch.OutOfMemoryError as error:
                raise UserError(
                    "the GPU has too little memory for this recipe; "
                    f"try optimizer.accumulate_grad_batches={2 * parts}, "
                    "or a smaller data.batch_size"
                ) from error
        self.done = module.steps_done

    def _advice(self) -> str:
        """Return how to go on after an error that another try may not have."""
        return f"; continue with: {self.resume_command}" if (self.out / LAST).is_file() else ""


def _check_divisible(recipe: Recipe, processes: Processes) -> None:
    phases = {"optimizer": recipe.optimizer}
    if recipe.refine is not None:
        phases["refine.optimizer"] = recipe.refine.optimizer
    for key, optimizer in phases.items():
        parts = processes.count * optimizer.accumulate_grad_batches
        if recipe.data.batch_size % parts:
            divisible = math.ceil(recipe.data.batch_size / parts) * parts
            raise UserError(
                f"data.batch_size={recipe.data.batch_size} images cannot be divided among "
                f"{processes.count} processes and {key}.accumulate_grad_batches="
                f"{optimizer.accumulate_grad_batches} parts; try data.batch_size={divisible}"
            )


def _size(model: nn.Module) -> str:
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    total = sum(size for size, _ in sizes) / 1e6
    trainable = sum(size for size, is_trainable in sizes if is_trainable) / 1e6
    return f"model: {total:.1f} million parameters, {trainable:.1f} million of them trainable"


def _draw_loss_curve(out: Path) -> None:
    try:
        from rcnn_ext.viz import plot_losses

        plot_losses(read_csv(out / LOSSES), out / LOSS_CURVE)
    except ModuleNotFoundError:
        pass  # matplotlib; the numbers are in the CSV file.
