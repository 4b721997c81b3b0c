"""The recipe: all sections together.

A recipe file has these sections and keys and no others. A run stores its recipe in its checkpoints,
as the dictionary that :func:`dataclasses.asdict` returns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from rcnn_ext.config.data import DataConfig
from rcnn_ext.config.model import ModelConfig
from rcnn_ext.config.selective_search import SelectiveSearchConfig
from rcnn_ext.config.training import (
    EvaluationConfig,
    OptimizerConfig,
    RefineConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainingConfig,
)
from rcnn_ext.config.values import Int, require


@dataclass
class Recipe:
    """Everything a training run depends on but the data themselves.

    Attributes:
        description: One line for people.
        seed: Seed of weights, order, augmentation and sampling.
        model: The detector.
        data: Where samples come from.
        selective_search: Where Fast R-CNN gets its proposals; other models do not look at it.
        optimizer: How weights follow gradients.
        schedule: How long training lasts.
        refine: A second phase of training, or null.
        training: Weights of the classes, and the average of the weights.
        evaluation: When it validates.
        runtime: How the process runs.
    """

    # Read by pydantic: a key that is none of these is an error, here and in the sections.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    description: str = ""
    seed: Int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    selective_search: SelectiveSearchConfig = field(default_factory=SelectiveSearchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    refine: RefineConfig | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", "0 or more")
