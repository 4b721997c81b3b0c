"""The sections of a recipe that say how a model is trained."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

from rcnn_ext.config.values import DIGITS, DOTTED_KEYS, Bool, Float, Int, require

_DEFAULT_STEPS = 90_000


@dataclass
class OptimizerConfig:
    """The optimizer: how weights follow gradients.

    Attributes:
        name: ``sgd`` or ``adamw``.
        lr: Learning rate after the warm-up.
        momentum: Momentum of SGD, or the first beta of AdamW.
        weight_decay: Weight decay of parameters with two or more dimensions: convolutions and
            linear layers.
        norm_weight_decay: Weight decay of the rest: biases and normalization.
        clip_norm: Longest gradient, over all parameters together; null does not clip.
        accumulate_grad_batches: Parts into which the images of a step are divided, one after the
            other, where memory is short. Their losses are averaged.
        lr_overrides: Learning rates of parts of the model instead of ``lr``. A part is the dotted
            beginning of its parameters' names, such as ``backbone.body.layer4``, or a regular
            expression for whole names; the first that fits counts.
        freeze: Parts that are not trained, named as in ``lr_overrides``.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Float = 0.02
    momentum: Float = 0.9
    weight_decay: Float = 1e-4
    norm_weight_decay: Float = 0.0
    clip_norm: Float | None = 10.0
    accumulate_grad_batches: Int = 1
    lr_overrides: Annotated[dict[str, Float], DOTTED_KEYS] = field(default_factory=dict)
    freeze: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "greater than 0")
        require(0 <= self.momentum < 1, "momentum", "from 0 to below 1")
        require(self.weight_decay >= 0, "weight_decay", "0 or more")
        require(self.norm_weight_decay >= 0, "norm_weight_decay", "0 or more")
        require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", "null or above 0")
        require(self.accumulate_grad_batches >= 1, "accumulate_grad_batches", "at least 1")
        for part, rate in self.lr_overrides.items():
            require(
                rate > 0,
                f"lr_overrides.{part}",
                "greater than 0; freeze= keeps a part as it is",
            )


@dataclass
class ScheduleConfig:
    """The schedule: how long training lasts, and how the learning rate changes meanwhile.

    Attributes:
        steps: Number of training steps; 90,000 where ``epochs`` is not given either.
        epochs: Number of times that every training image is seen, instead of ``steps``. A run
            computes its steps from it, rounded up, and keeps those.
        warmup_steps: Steps in which the rate grows linearly to its full value, but no more than a
            fifth of all, so that short trial runs learn too.
        warmup_factor: Part of the full value at which it begins.
        decay: After the warm-up: ``constant``, ``cosine`` (to ``final_factor`` at the last step),
            ``multistep`` (times ``gamma`` at each of ``milestones``), or ``plateau`` (times
            ``gamma``, down to ``final_factor``, after each ``patience`` validations in a row
            without a new best).
        milestones: Steps, or epochs where ``epochs`` is given, counted from the beginning of the
            phase.
        gamma: Factor of ``multistep`` and ``plateau``.
        final_factor: Part of the full value at which ``cosine`` and ``plateau`` end.
        patience: Validations in a row without a new best, after which ``plateau`` acts.
    """

    steps: Int | None = None
    epochs: Float | None = None
    warmup_steps: Int = 500
    warmup_factor: Float = 0.001
    decay: Literal["constant", "cosine", "multistep", "plateau"] = "multistep"
    milestones: list[Float] = field(default_factory=list)
    gamma: Float = 0.1
    final_factor: Float = 0.0
    patience: Int = 3

    def __post_init__(self) -> None:
        if self.steps is None and self.epochs is None:
            self.steps = _DEFAULT_STEPS
        require(self.steps is None or self.steps >= 1, "steps", "at least 1")
        require(self.epochs is None or self.epochs > 0, "epochs", "greater than 0")
        require(self.steps is None or self.epochs is None, "epochs", "null where steps is a number")
        # Whole numbers are read as whole numbers, and written as such.
        self.milestones = [int(one) if float(one).is_integer() else one for one in self.milestones]
        whole = all(isinstance(one, int) for one in self.milestones)
        require(self.steps is None or whole, "milestones", "whole steps")
        require(self.warmup_steps >= 0, "warmup_steps", "0 or more")
        require(0 < self.warmup_factor <= 1, "warmup_factor", "above 0 and at most 1")
        require(self.milestones == sorted(self.milestones), "milestones", "ascending")
        require(0 < self.gamma <= 1, "gamma", "above 0 and at most 1")
        require(0 <= self.final_factor <= 1, "final_factor", "from 0 to 1")
        require(self.patience >= 1, "patience", "at least 1")

    @property
    def num_steps(self) -> int:
        """Number of steps.

        Raises:
            ValueError: The schedule is in epochs, whose steps depend on the training images.
        """
        if self.steps is None:
            raise ValueError("a schedule in epochs has no number of steps before it sees the data")
        return self.steps

    def in_unit(self, *, steps: int | None = None, epochs: float | None = None) -> ScheduleConfig:
        """Return the schedule with another length, in steps or in epochs.

        If the unit changes, each milestone keeps its place as a fraction of the whole.

        Args:
            steps: Number of steps, or None.
            epochs: Number of epochs, where ``steps`` is None.
        """
        milestones = self.milestones
        if (self.steps is None) != (steps is None):
            before, after = self.steps or self.epochs, steps or epochs
            assert before is not None
            assert after is not None
            milestones = [one / before * after for one in milestones]
            milestones = [round(one) if steps else round(one, 6) for one in milestones]
        return dataclasses.replace(self, steps=steps, epochs=epochs, milestones=milestones)


@dataclass
class RefineConfig:
    """A second phase of training, from where the first ends.

    Attributes:
        trainable: Parts of the model that are trained in it, named as in
            ``optimizer.lr_overrides``, whether or not they were before; all others are frozen, with
            their batch statistics.
        optimizer: A new optimizer.
        schedule: Its steps come after those of the first phase.
    """

    trainable: list[str] = field(default_factory=lambda: ["roi_heads"])
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        require(bool(self.trainable), "trainable", "one or more parts")


@dataclass
class EmaConfig:
    """The exponential moving average (EMA) of the weights, batch statistics included.

    Where there is one, validations, ``best.ckpt``, and whatever loads a checkpoint use the average;
    a resumed run goes on from both.

    Attributes:
        decay: Part of the average that a step leaves, such as 0.999, which averages over about
            1,000 steps; null trains without an average.
        warmup: Whether the decay grows with the steps n as (1 + n) / (10 + n), up to ``decay``, so
            that the average of a short run does not hang on to the weights it began with.
    """

    decay: Float | None = None
    warmup: Bool = True

    def __post_init__(self) -> None:
        require(self.decay is None or 0 <= self.decay < 1, "decay", "null or from 0 to below 1")


@dataclass
class TrainingConfig:
    """Training beside optimizer and schedule: weights of the classes, and the average.

    Attributes:
        class_weights: Weights of the classes in the classification loss of the box head; the
            background has 1. A list in the order of the classes; keys with values by name, where
            those left out have 1; ``auto``, inversely proportional to the square root of the number
            of training objects, at most 10 times the smallest and on average 1 over all objects; or
            null for 1. Those of a localizer are ``model.localizer.class_weights``.
        ema: The exponential moving average of the weights.
    """

    class_weights: (
        list[Float] | Annotated[dict[str, Float], DOTTED_KEYS] | Literal["auto"] | None
    ) = None
    ema: EmaConfig = field(default_factory=EmaConfig)

    def __post_init__(self) -> None:
        weights = self.class_weights
        if isinstance(weights, (list, dict)):
            values = weights.values() if isinstance(weights, dict) else weights
            require(all(value > 0 for value in values), "class_weights", "greater than 0")


@dataclass
class EvaluationConfig:
    """Validation during training; ``batch_size`` and ``max_detections`` are for any evaluation.

    Attributes:
        val_every: Steps from one validation to the next; 0 validates at the end only.
        batch_size: Images in a batch of a process.
        max_images: Maximum number of images, the first ones, that validations during training look
            at; null means all.
        max_detections: Maximum number of detections of a class in an image that COCO's metrics
            count; null means 100, as COCO's table. For images with more objects: evaluations raise
            a lower ``model.box_detections_per_img`` to it, ``rcnn-ext detect`` does not.
        monitor: The metric that decides what is the best, such as ``AP50`` or ``VOC_AP``; null
            means ``AP``, or for a localizer ``score``. Higher is better.
        min_delta: How much better than the best before a validation must be.
        patience: Number of validations in a row without a new best after which a phase ends; null
            trains all steps.
    """

    val_every: Int = 5_000
    batch_size: Int = 4
    max_images: Int | None = None
    max_detections: Int | None = None
    monitor: str | None = None
    min_delta: Float = 0.0
    patience: Int | None = None

    def __post_init__(self) -> None:
        require(self.val_every >= 0, "val_every", "0 or more")
        require(self.batch_size >= 1, "batch_size", "at least 1")
        require(self.max_images is None or self.max_images >= 1, "max_images", "null or at least 1")
        require(
            self.max_detections is None or self.max_detections >= 1,
            "max_detections",
            "null or at least 1",
        )
        require(self.min_delta >= 0, "min_delta", "0 or more")
        require(self.patience is None or self.patience >= 1, "patience", "null or at least 1")


@dataclass
class RuntimeConfig:
    """The training process: device, precision, logs.

    Attributes:
        device: ``auto`` takes a GPU where there is one.
        precision: ``32``, or mixed precision with ``bf16`` or (GPU only) ``16``; ``auto`` is
            mixed on a GPU and 32 elsewhere.
        log_every: Steps that are averaged to one line of ``losses.csv``; null means 20, and in a
            run of less than 200 steps a tenth of them.
        checkpoint_every: Steps from one write of ``last.ckpt`` to the next; it is also written
            with each validation, at the end, and on Ctrl-C.
        on_nan: Reaction to a loss or gradient that is NaN or infinite: ``stop`` with the names
            of the losses, or ``skip`` the step.
        loggers: Where losses and metrics go: ``csv`` (always among them), ``tensorboard`` (where
            it is installed), ``wandb`` (Weights & Biases) and ``mlflow``.
        sync_batch_norm: Whether batch normalization takes its statistics over all GPUs.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Annotated[Literal["auto", "32", "bf16", "16"], DIGITS] = "32"
    log_every: Int | None = None
    checkpoint_every: Int = 500
    on_nan: Literal["stop", "skip"] = "stop"
    loggers: list[Literal["csv", "tensorboard", "wandb", "mlflow"]] = field(
        default_factory=lambda: ["csv", "tensorboard"]
    )
    sync_batch_norm: Bool = False

    def __post_init__(self) -> None:
        require(self.log_every is None or self.log_every >= 1, "log_every", "null or at least 1")
        require(self.checkpoint_every >= 1, "checkpoint_every", "at least 1")
        # The summary of a run and its curve are made from the tables.
        require("csv" in self.loggers, "loggers", "a list that has csv")
