"""What a recipe may say, and what each value means.

The dataclasses are the schema: a recipe file has these sections and keys and no others. A run
stores its recipe in its checkpoints, as the dictionary that :func:`dataclasses.asdict` gives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rcnn_ext.data.config import DataConfig
from rcnn_ext.selective_search.config import SelectiveSearchConfig


@dataclass
class LocalizerConfig:
    """What a localizer has of its own: what :class:`rcnn_ext.models.Localizer` takes.

    Attributes:
        hidden_channels: Length of the hidden layer of each head.
        activation: Of the heads, and of the backbone ``cnn``.
        batch_norm: Whether the heads normalise over the batch.
        sigmoid_boxes: Whether coordinates of boxes go through a sigmoid.
        alpha: Weight of the loss of the box; that of the class has 1 - alpha.
        box_loss: ``mse`` or ``giou``.
        class_weights: Weights of the classes in the loss; ``balanced`` weighs them by the training
            images, the rare ones most; null means alike.
    """

    hidden_channels: int = 256
    activation: Literal["silu", "relu"] = "silu"
    batch_norm: bool = True
    sigmoid_boxes: bool = True
    alpha: float = 0.5
    box_loss: Literal["mse", "giou"] = "mse"
    class_weights: list[float] | Literal["balanced"] | None = None

    def __post_init__(self) -> None:
        _require(self.hidden_channels >= 1, "hidden_channels", "at least 1")
        _require(0 <= self.alpha <= 1, "alpha", "from 0 to 1")


@dataclass
class ModelConfig:
    """The model: what the builder of :mod:`rcnn_ext.models` that ``detector`` names takes.

    null means the model's own choice. The names that are not explained here are torchvision's. A
    key that the kind of model does not have is an error.

    Attributes:
        detector: The kind of model. ``fast_rcnn`` takes its proposals as the section
            ``selective_search``
            says; ``localizer`` finds one object in each image.
        backbone: The network that makes features, such as ``resnet50`` or ``resnet18``; for a
            localizer also ``cnn``, and any with ``_fpn`` at its end.
        neck: What stands between backbone and heads: ``fpn``, a feature pyramid; ``c4`` or ``c5``,
            the map of stride 16 or 32 as it is. null means ``fpn`` for Faster R-CNN and ``c4`` for
            Fast R-CNN.
        head: ``res5``, the last stage of the backbone on each RoI, or ``mlp``, two fully connected
            layers; null means ``res5`` where the neck leaves that stage.
        pooler: RoIAlign (``align``) or RoIPool (``pool``).
        weights_backbone: Published weights the backbone starts from (``DEFAULT``), or null for
            random ones.
        trainable_layers: How many stages of the backbone learn, counted from the last. Without
            weights all do, whatever this says: random layers that never learn are of no use.
        norm_layer: ``frozen`` or ``batch`` normalisation; ``auto`` is frozen with weights.
        returned_layers: Stages of the backbone that the pyramid is built on.
        checkpoint_layers: Stages whose activations are computed again in the backward pass rather
            than kept: less memory, more time.
        channels_last: Whether weights and images are stored with channels last: faster on most
            GPUs in mixed precision.
        min_size: Shorter side of the image that the network sees, in pixels. Of several, one is
            drawn for each training image, and the last is used otherwise.
        max_size: Longest side that the network sees; it overrules ``min_size``.
        fixed_size: Width and height to which every image is brought instead, whatever its own. The
            only size that a localizer knows.
        anchor_sizes: Sides of the anchors in pixels of the resized image: one for each level of
            the pyramid, or a list for each.
        aspect_ratios: Height to width of the anchors.
        class_agnostic: One box a proposal rather than one for each class.
        dropout: Probability of dropping an output of the head in training.
        box_bg_iou_low: Proposals below this IoU with every object are no background either.
        bbox_target_means: Subtracted from the targets of the boxes.
        bbox_target_stds: What they are divided by then; 1 / ``bbox_reg_weights``, so one of the
            two.
        localizer: What a localizer has of its own.
    """

    detector: Literal["faster_rcnn", "fast_rcnn", "localizer"] = "faster_rcnn"
    backbone: str = "resnet50"
    neck: Literal["fpn", "c4", "c5"] | None = None
    head: Literal["res5", "mlp"] | None = None
    pooler: Literal["align", "pool"] = "align"
    weights_backbone: str | None = None
    trainable_layers: int | None = None
    norm_layer: Literal["auto", "frozen", "batch"] = "auto"
    returned_layers: list[int] | None = None
    checkpoint_layers: list[str] = field(default_factory=list)
    channels_last: bool = False
    min_size: int | list[int] = 800
    max_size: int = 1333
    fixed_size: tuple[int, int] | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    anchor_sizes: list[int] | list[list[int]] | None = None
    aspect_ratios: list[float] | None = None
    pool_size: int | None = None
    sampling_ratio: int | None = None
    class_agnostic: bool = False
    dropout: float = 0.0
    rpn_pre_nms_top_n_train: int | None = None
    rpn_pre_nms_top_n_test: int | None = None
    rpn_post_nms_top_n_train: int | None = None
    rpn_post_nms_top_n_test: int | None = None
    rpn_nms_thresh: float | None = None
    rpn_fg_iou_thresh: float | None = None
    rpn_bg_iou_thresh: float | None = None
    rpn_batch_size_per_image: int | None = None
    rpn_positive_fraction: float | None = None
    rpn_score_thresh: float | None = None
    box_score_thresh: float | None = None
    box_nms_thresh: float | None = None
    box_detections_per_img: int | None = None
    box_fg_iou_thresh: float | None = None
    box_bg_iou_thresh: float | None = None
    box_bg_iou_low: float | None = None
    box_batch_size_per_image: int | None = None
    box_positive_fraction: float | None = None
    bbox_reg_weights: tuple[float, float, float, float] | None = None
    bbox_target_means: tuple[float, float, float, float] | None = None
    bbox_target_stds: tuple[float, float, float, float] | None = None
    localizer: LocalizerConfig = field(default_factory=LocalizerConfig)

    def __post_init__(self) -> None:
        sizes = self.min_size if isinstance(self.min_size, list) else [self.min_size]
        _require(bool(sizes) and min(sizes) >= 16, "min_size", "one or more sizes from 16")
        _require(self.max_size >= 16, "max_size", "at least 16")
        _require(0 <= self.dropout < 1, "dropout", "from 0 to below 1")


@dataclass
class OptimizerConfig:
    """How weights follow gradients.

    Attributes:
        name: ``sgd`` or ``adamw``.
        lr: Learning rate after the warm-up.
        momentum: Of SGD; the first beta of AdamW.
        weight_decay: Of weights of two or more dimensions: convolutions and linear layers.
        norm_weight_decay: Of the rest: biases and normalisation.
        clip_norm: Longest gradient, over all parameters together; null does not clip.
        accumulate_grad_batches: Parts into which the images of a step are divided, one after the
            other, where memory is short. Their losses are averaged.
        lr_overrides: Learning rates of parts of the model instead of ``lr``. A part is the dotted
            beginning of its parameters' names, such as ``backbone.body.layer4``, or a regular
            expression for whole names; the first that fits counts.
        freeze: Parts that do not learn, named as in ``lr_overrides``.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_weight_decay: float = 0.0
    clip_norm: float | None = 10.0
    accumulate_grad_batches: int = 1
    lr_overrides: dict[str, float] = field(default_factory=dict)
    freeze: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _require(self.lr > 0, "lr", "greater than 0")
        _require(0 <= self.momentum < 1, "momentum", "from 0 to below 1")
        _require(self.weight_decay >= 0, "weight_decay", "0 or more")
        _require(self.norm_weight_decay >= 0, "norm_weight_decay", "0 or more")
        _require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", "null or above 0")
        _require(self.accumulate_grad_batches >= 1, "accumulate_grad_batches", "at least 1")
        for part, rate in self.lr_overrides.items():
            _require(
                rate > 0,
                f"lr_overrides.{part}",
                "greater than 0; freeze= stops a part from learning",
            )


@dataclass
class ScheduleConfig:
    """How long training lasts and how the learning rate changes meanwhile.

    Attributes:
        steps: Number of training steps.
        warmup_steps: Steps in which the rate grows linearly to its full value, but no more than a
            fifth of all, so that short trial runs learn too.
        warmup_factor: Part of the full value at which it begins.
        decay: After the warm-up: ``constant``, ``cosine`` (to ``final_factor`` at the last step),
            ``multistep`` (times ``gamma`` at each of ``milestones``), or ``plateau`` (times
            ``gamma``, down to ``final_factor``, after each ``patience`` validations in a row
            without a new best).
        milestones: Steps, counted from the beginning of the phase.
        gamma: See ``decay``.
        final_factor: See ``decay``.
        patience: See ``decay``.
    """

    steps: int = 90_000
    warmup_steps: int = 500
    warmup_factor: float = 0.001
    decay: Literal["constant", "cosine", "multistep", "plateau"] = "multistep"
    milestones: list[int] = field(default_factory=list)
    gamma: float = 0.1
    final_factor: float = 0.0
    patience: int = 3

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "steps", "at least 1")
        _require(self.warmup_steps >= 0, "warmup_steps", "0 or more")
        _require(0 < self.warmup_factor <= 1, "warmup_factor", "above 0 and at most 1")
        _require(self.milestones == sorted(self.milestones), "milestones", "ascending")
        _require(0 < self.gamma <= 1, "gamma", "above 0 and at most 1")
        _require(0 <= self.final_factor <= 1, "final_factor", "from 0 to 1")
        _require(self.patience >= 1, "patience", "at least 1")


@dataclass
class RefineConfig:
    """A second phase of training, from where the first ends.

    Attributes:
        trainable: Parts of the model that learn in it, named as in ``optimizer.lr_overrides``,
            whether or not they learned before; all others are frozen, with their batch statistics.
        optimizer: A new optimiser.
        schedule: Its steps come after those of the first phase.
    """

    trainable: list[str] = field(default_factory=lambda: ["roi_heads"])
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        _require(bool(self.trainable), "trainable", "one or more parts")


@dataclass
class EvaluationConfig:
    """Validation during training, and the batches of any evaluation.

    Attributes:
        val_every: Steps from one validation to the next; 0 validates at the end only.
        batch_size: Images in a batch of a process.
        max_images: Validations during training look at the first so many images; null means all.
        monitor: The metric that decides what is the best, such as ``AP50`` or ``VOC_AP``; null
            means ``AP``, or for a localizer ``score``. Higher is better.
        min_delta: How much better than the best before a validation must be.
        patience: A phase ends after so many validations in a row without a new best; null trains
            all steps.
    """

    val_every: int = 5_000
    batch_size: int = 4
    max_images: int | None = None
    monitor: str | None = None
    min_delta: float = 0.0
    patience: int | None = None

    def __post_init__(self) -> None:
        _require(self.val_every >= 0, "val_every", "0 or more")
        _require(self.batch_size >= 1, "batch_size", "at least 1")
        _require(
            self.max_images is None or self.max_images >= 1, "max_images", "null or at least 1"
        )
        _require(self.min_delta >= 0, "min_delta", "0 or more")
        _require(self.patience is None or self.patience >= 1, "patience", "null or at least 1")


@dataclass
class RuntimeConfig:
    """How the training process runs.

    Attributes:
        device: ``auto`` takes a GPU where there is one.
        precision: ``32``, or mixed precision with ``bf16`` or (GPU only) ``16``; ``auto`` is
            mixed on a GPU and 32 elsewhere.
        log_every: Steps that are averaged to one line of ``losses.csv``.
        checkpoint_every: Steps from one write of ``last.ckpt`` to the next; it is also written
            with each validation, at the end, and on Ctrl-C.
        on_nan: What to do when a loss or gradient is NaN or infinite: ``stop`` with the names
            of the losses, or ``skip`` the step.
        tensorboard: Whether to write TensorBoard logs too, where tensorboard is installed.
        sync_batch_norm: Whether batch normalisation takes its statistics over all GPUs.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "32", "bf16", "16"] = "32"
    log_every: int = 20
    checkpoint_every: int = 500
    on_nan: Literal["stop", "skip"] = "stop"
    tensorboard: bool = True
    sync_batch_norm: bool = False

    def __post_init__(self) -> None:
        _require(self.log_every >= 1, "log_every", "at least 1")
        _require(self.checkpoint_every >= 1, "checkpoint_every", "at least 1")


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
        evaluation: When it validates.
        runtime: How the process runs.
    """

    description: str = ""
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    selective_search: SelectiveSearchConfig = field(default_factory=SelectiveSearchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    refine: RefineConfig | None = None
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", "0 or more")


def _require(fulfilled: bool, key: str, rule: str) -> None:
    if not fulfilled:
        raise ValueError(f"{key} must be {rule}")
