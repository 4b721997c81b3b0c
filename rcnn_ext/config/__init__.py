"""Recipes: everything a training run depends on, as YAML.

``rcnn-ext train`` takes the name of a file in ``rcnn_ext/recipes`` or a path, and any value
of it as ``section.key=value``. Nothing here imports data, models or PyTorch.
"""

from rcnn_ext.config.augment import AugmentConfig
from rcnn_ext.config.data import (
    CsvConfig,
    DataConfig,
    HubConfig,
    SyntheticConfig,
    VocConfig,
)
from rcnn_ext.config.loading import (
    apply_override,
    load_recipe,
    recipe_from_dict,
    recipe_names,
    recipe_to_yaml,
    with_data_overrides,
    with_steps,
)
from rcnn_ext.config.model import LocalizerConfig, ModelConfig, PartsConfig
from rcnn_ext.config.recipe import Recipe
from rcnn_ext.config.selective_search import FilterSettings, SearchSettings, SelectiveSearchConfig
from rcnn_ext.config.training import (
    EmaConfig,
    EvaluationConfig,
    OptimizerConfig,
    RefineConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainingConfig,
)

__all__ = [
    "AugmentConfig",
    "CsvConfig",
    "DataConfig",
    "EmaConfig",
    "EvaluationConfig",
    "FilterSettings",
    "HubConfig",
    "LocalizerConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PartsConfig",
    "Recipe",
    "RefineConfig",
    "RuntimeConfig",
    "ScheduleConfig",
    "SearchSettings",
    "SelectiveSearchConfig",
    "SyntheticConfig",
    "TrainingConfig",
    "VocConfig",
    "apply_override",
    "load_recipe",
    "recipe_from_dict",
    "recipe_names",
    "recipe_to_yaml",
    "with_data_overrides",
    "with_steps",
]
