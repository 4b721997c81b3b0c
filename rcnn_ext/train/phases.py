"""The phases of a training run, and what a run remembers of its validations."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from rcnn_ext.config import EvaluationConfig, OptimizerConfig, Recipe, ScheduleConfig
from rcnn_ext.train.optim import choose_learning, learning_rate_factor


@dataclass(frozen=True)
class Phase:
    """A part of training with an optimiser of its own.

    Attributes:
        index: Its number, from 0.
        start: Steps of the phases before.
        optimizer: See the recipe.
        schedule: See the recipe.
        trainable: Parts of the model that learn; None leaves what the model was built with.
    """

    index: int
    start: int
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    trainable: tuple[str, ...] | None = None

    @property
    def end(self) -> int:
        """Steps of the run after this phase, if it is not ended before."""
        return self.start + self.schedule.steps

    def prepare(self, model: nn.Module) -> None:
        """Decides which parameters learn."""
        choose_learning(model, self.trainable, self.optimizer.freeze)


def all_phases(recipe: Recipe) -> list[Phase]:
    """The phases of a recipe, each beginning when the one before has done all its steps."""
    phases = [Phase(0, 0, recipe.optimizer, recipe.schedule)]
    if recipe.refine is not None:
        refine = recipe.refine
        trainable = tuple(refine.trainable)
        phases.append(Phase(1, phases[0].end, refine.optimizer, refine.schedule, trainable))
    return phases


@dataclass
class RunState:
    """What a run remembers beside weights and optimiser, so that it can go on.

    Attributes:
        phase: Number of the phase.
        phase_start: Step at which it began.
        ended: Whether the phase has ended, by its last step or by its patience.
        validated: Step of the last validation.
        best: Best score of the run.
        phase_best: Best score of the phase.
        stale: Validations in a row that were no new best of the phase.
        plateau: The same for the learning rate, counted anew after each decay.
        rate_factor: What plateaus have left of the learning rate.
        skipped: Steps that were skipped for a loss or gradient that was not finite.
        processes: How many trained it, which the order of a stream depends on.
    """

    phase: int = 0
    phase_start: int = 0
    ended: bool = False
    validated: int = 0
    best: float | None = None
    phase_best: float | None = None
    stale: int = 0
    plateau: int = 0
    rate_factor: float = 1.0
    skipped: int = 0
    processes: int = 1

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return dataclasses.asdict(self)

    def next_phase(self, start: int) -> None:
        """Begins a phase, but remembers the best of the run."""
        kept = {name: getattr(self, name) for name in ("best", "validated", "skipped", "processes")}
        self.__dict__.update(RunState(self.phase + 1, start, **kept).__dict__)

    def note(
        self, score: float, step: int, schedule: ScheduleConfig, config: EvaluationConfig
    ) -> bool:
        """Takes in a validation.

        Args:
            score: Its score; NaN where there was nothing to score.
            step: When it was.
            schedule: Of the phase.
            config: Of the recipe.

        Returns:
            Whether it is at least as good as the best of the run.
        """
        # Nothing to be found, such as only empty images, is no reason not to have a best.
        score = 0.0 if math.isnan(score) else score
        self.validated = step
        if self.phase_best is None or score > self.phase_best + config.min_delta:
            self.phase_best, self.stale, self.plateau = score, 0, 0
        else:
            self.stale += 1
            self.plateau += 1
        if schedule.decay == "plateau" and self.plateau >= schedule.patience:
            self.rate_factor = max(schedule.final_factor, self.rate_factor * schedule.gamma)
            self.plateau = 0
        if config.patience is not None and self.stale >= config.patience:
            self.ended = True
        best = self.best is None or score >= self.best
        if best:
            self.best = score
        return best

    def factor(self, step: int, schedule: ScheduleConfig) -> float:
        """What the learning rates are multiplied by at a step of the phase."""
        return self.rate_factor * learning_rate_factor(step, schedule)
