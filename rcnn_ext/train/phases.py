"""Phases of a training run, and the progress that a run keeps in its checkpoints."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from rcnn_ext.config import EvaluationConfig, OptimizerConfig, Recipe, ScheduleConfig
from rcnn_ext.train.optim import learning_rate_factor, set_trainable


@dataclass(frozen=True)
class Phase:
    """A part of training with an optimizer of its own.

    Attributes:
        index: Index of the phase, from 0.
        start: Number of steps of the phases before.
        optimizer: Optimizer section of the recipe.
        schedule: Schedule section of the recipe.
        trainable: Parts of the model that are trained; None keeps those it was built with.
    """

    index: int
    start: int
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    trainable: tuple[str, ...] | None = None

    @property
    def end(self) -> int:
        """Number of steps of the run after this phase, if it does all of its own."""
        return self.start + self.schedule.num_steps

    def prepare(self, model: nn.Module) -> None:
        """Set which parameters are trainable."""
        set_trainable(model, self.trainable, self.optimizer.freeze)


def all_phases(recipe: Recipe) -> list[Phase]:
    """Return the phases of a recipe, as if each did all its steps."""
    phases = [Phase(0, 0, recipe.optimizer, recipe.schedule)]
    if recipe.refine is not None:
        refine = recipe.refine
        trainable = tuple(refine.trainable)
        phases.append(Phase(1, phases[0].end, refine.optimizer, refine.schedule, trainable))
    return phases


@dataclass
class RunState:
    """Progress of a run beside weights and optimizer, which a resumed run starts from.

    Attributes:
        phase: Index of the phase.
        phase_start: Number of steps before it.
        ended: Whether the phase has ended, by its last step or by its patience.
        validated: Step of the last validation.
        best: Best score of the run.
        phase_best: Best score of the phase.
        validations_without_improvement: Number of validations since the best of the phase.
        plateau: Number of validations since the best of the phase or the last decay.
        lr_factor: Product of the decays at plateaus.
        skipped: Number of steps that were skipped for a loss or gradient that was not finite.
        processes: Number of processes that trained it, which the order of a stream depends on.
        logger_runs: Ids of the run in Weights & Biases and MLflow, by logger.
        data: What the training images were, as
            :func:`rcnn_ext.train.training_data.describe_images` gives it; empty for a stream.
    """

    phase: int = 0
    phase_start: int = 0
    ended: bool = False
    validated: int = 0
    best: float | None = None
    phase_best: float | None = None
    validations_without_improvement: int = 0
    plateau: int = 0
    lr_factor: float = 1.0
    skipped: int = 0
    processes: int = 1
    logger_runs: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return dataclasses.asdict(self)

    def see_data(self, found: dict[str, Any]) -> list[str]:
        """Note the training images, and return lines about how they differ from those before."""
        before, self.data = self.data, found
        if not before or before == found:
            return []
        counts = ("images", "objects")
        then, now = (", ".join(f"{of.get(n)} {n}" for n in counts) for of in (before, found))
        changed = f"{then} before, {now} now" if then != now else f"still {now}, but others"
        return [
            f"the training data have changed since the checkpoint ({changed}): from here the "
            "images come in another order, and losses are not those of a run without a stop"
        ]

    def next_phase(self, start: int) -> None:
        """Begin the next phase after ``start`` steps, and keep the best of the run."""
        names = ("best", "validated", "skipped", "processes", "logger_runs", "data")
        kept = {name: getattr(self, name) for name in names}
        self.__dict__.update(RunState(self.phase + 1, start, **kept).__dict__)

    def update(
        self, score: float, step: int, schedule: ScheduleConfig, config: EvaluationConfig
    ) -> bool:
        """Update the counters after a validation.

        Args:
            score: Its score; NaN where there was nothing to score.
            step: The step it came after.
            schedule: Schedule of the phase.
            config: Evaluation section of the recipe.

        Returns:
            Whether it is at least as good as the best of the run.
        """
        # Images without any object have no score, but a run on them still needs a best checkpoint.
        score = 0.0 if math.isnan(score) else score
        self.validated = step
        if self.phase_best is None or score > self.phase_best + config.min_delta:
            self.phase_best = score
            self.validations_without_improvement = self.plateau = 0
        else:
            self.validations_without_improvement += 1
            self.plateau += 1
        if schedule.decay == "plateau" and self.plateau >= schedule.patience:
            self.lr_factor = max(schedule.final_factor, self.lr_factor * schedule.gamma)
            self.plateau = 0
        if config.patience is not None and self.validations_without_improvement >= config.patience:
            self.ended = True
        best = self.best is None or score >= self.best
        if best:
            self.best = score
        return best

    def factor(self, step: int, schedule: ScheduleConfig) -> float:
        """Return the factor of all learning rates at a step of the phase."""
        return self.lr_factor * learning_rate_factor(step, schedule)
