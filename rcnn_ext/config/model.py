"""The section ``model`` of a recipe, and the options of the builders of detectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from rcnn_ext.config.values import Bool, Float, Int, require

NeckName = Literal["c4", "c5", "fpn"]
HeadName = Literal["res5", "mlp", "conv"]
PoolerName = Literal["align", "pool"]

# Of the anchors where nothing else is said: sides in image pixels, of the FPN paper one for each of
# P2 to P6; and height to width.
ANCHOR_SIZES = (32, 64, 128, 256, 512)
ASPECT_RATIOS = (0.5, 1.0, 2.0)


# Declared again in `Localizer`, whose signature is what editors show; a test compares the defaults.
@dataclass
class LocalizerConfig:
    """Options of a localizer alone: arguments of :class:`rcnn_ext.models.Localizer`.

    Attributes:
        hidden_channels: Length of the hidden layer of each head.
        activation: Activation of the heads, and of the backbone ``cnn``.
        batch_norm: Whether the heads normalize over the batch.
        sigmoid_boxes: Whether coordinates of boxes go through a sigmoid.
        alpha: Weight of the loss of the box; that of the class has 1 - alpha.
        box_loss: ``mse`` or ``giou``.
        class_weights: Weights of the classes in the loss; ``balanced`` weighs them by the training
            images, the rare ones most; null means alike.
    """

    hidden_channels: Int = 256
    activation: Literal["silu", "relu"] = "silu"
    batch_norm: Bool = True
    sigmoid_boxes: Bool = True
    alpha: Float = 0.5
    box_loss: Literal["mse", "giou"] = "mse"
    class_weights: list[Float] | Literal["balanced"] | None = None

    def __post_init__(self) -> None:
        require(self.hidden_channels >= 1, "hidden_channels", "at least 1")
        require(0 <= self.alpha <= 1, "alpha", "from 0 to 1")


@dataclass
class PartsConfig:
    """The parts of a detector: the options of ``fast_rcnn`` and ``faster_rcnn``.

    In Python, sequences may be of any type, ``backbone`` also a module, ``weights_backbone`` also
    one of torchvision's enumerations, and ``norm_layer`` also a function from channels to a layer.

    Attributes:
        backbone: The network that makes features: ``resnet18``, ``resnet34``, ``resnet50``,
            ``resnet101`` or ``mobilenet_v3_large``, or any of timm that gives feature maps, such as
            ``timm:convnext_tiny``; for a localizer also ``cnn``, and any with ``_fpn`` at its end.
            A module maps images [N, 3, H, W] to a feature map or a dict of
            them, finest first; its channels and strides are measured.
        neck: Layers between backbone and heads: ``fpn``, a feature pyramid; ``c4`` or ``c5``, the
            map of stride 16 or 32 as it is. null means ``fpn`` for Faster R-CNN and ``c4`` for
            Fast R-CNN, and takes a module as it is.
        head: ``res5``, the last stage of the backbone (layer4 of a ResNet) run on each RoI and
            averaged, which keeps its pretrained weights; ``mlp``, two fully connected layers of
            1024; or ``conv``, four 3x3 convolutions of 256 with batch norm and one fully connected
            layer of 1024, as in torchvision's ``fasterrcnn_resnet50_fpn_v2``. null means ``res5``
            where the neck leaves that stage, else ``mlp``.
        pooler: RoIAlign (``align``), or RoIPool (``pool``) for a single map.
        pool_size: Height and width of a pooled RoI; null means 7. In ``res5`` the last stage has
            stride 1 on 7x7, and keeps its stride of 2 from 14x14 on (He et al.), so that it works
            on 7x7 in both.
        sampling_ratio: Samples along each side of a bin of RoIAlign; 0 adapts to the RoI's size,
            null means 2.
        class_agnostic: Whether a RoI has one box instead of one for each class.
        dropout: Probability of dropping an output of the head in training.
        fpn_batch_norm: Whether each convolution of the pyramid is followed by a batch norm, as in
            torchvision's v2.
        rpn_conv_depth: Number of 3x3 convolutions in the head of the RPN of Faster R-CNN; 2 in
            torchvision's v2.
        stride_in_1x1: Whether the blocks of a ResNet have their stride in the first 1x1 convolution
            rather than the 3x3, as the Caffe ones of detectron2; null means false, and with
            ``model.weights`` what those were trained with.
        conventions: ``detectron2``: anchors of fractions of a pixel, RoIAlign in pyramids with the
            half-pixel offset and by default ``sampling_ratio`` 0; ``torchvision``: neither, and
            anchors whose strides are rounded down. null means neither with exact strides, and with
            ``model.weights`` the conventions of the weights.
        in_channels: Channels of the images, from 1 to 12. Published weights are adapted: the first
            convolution is summed over red, green and blue for one channel; for others the three
            take turns, times 3 / ``in_channels``.
        weights_backbone: Published weights the backbone starts from (``DEFAULT``), or null for
            random ones. For a network of timm also the tag of others, such as
            ``in12k_ft_in1k``.
        norm_layer: ``frozen`` or ``batch`` normalization; ``auto`` is frozen with weights.
        trainable_layers: Number of trainable stages of the backbone, counted from the last, the one
            in a ``res5`` head included. null means 3 with weights, and all without or of timm.
            In a recipe without weights all are trainable, whatever this says: frozen random layers
            are of no use.
        returned_layers: Stages of the backbone that the pyramid is built on.
        checkpoint_stages: Stages (``layer3``) whose activations are computed again in the backward
            pass rather than kept: less memory, more time.
        anchor_sizes: Sides of the anchors of Faster R-CNN in pixels of the resized image. Plain
            numbers are one size for each level of a pyramid, or all sizes of a single map; nested,
            they are the sizes of each level. null means 8 times the stride of each level of a
            pyramid, which is 32 to 512 for a ResNet, and all of 32, 64, 128, 256, 512 on every map
            where levels share a stride (torchvision's MobileNetV3) or there is only one.
        aspect_ratios: Height to width of the anchors of Faster R-CNN, for all levels, or in Python
            nested for each; null means 0.5, 1 and 2.
    """

    backbone: str = "resnet50"
    neck: NeckName | None = None
    head: HeadName | None = None
    pooler: PoolerName = "align"
    pool_size: Int | None = None
    sampling_ratio: Int | None = None
    class_agnostic: Bool = False
    dropout: Float = 0.0
    fpn_batch_norm: Bool = False
    rpn_conv_depth: Int = 1
    stride_in_1x1: Bool | None = None
    conventions: Literal["torchvision", "detectron2"] | None = None
    in_channels: Int = 3
    weights_backbone: str | None = None
    norm_layer: Literal["auto", "frozen", "batch"] = "auto"
    trainable_layers: Int | None = None
    returned_layers: list[Int] | None = None
    checkpoint_stages: list[str] = field(default_factory=list)
    anchor_sizes: list[Int] | list[list[Int]] | None = None
    aspect_ratios: list[Float] | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("neck", (*get_args(NeckName), None)),
            ("head", (*get_args(HeadName), None)),
            ("pooler", get_args(PoolerName)),
        ):
            if getattr(self, name) not in known:
                names = ", ".join(map(repr, filter(None, known)))
                raise ValueError(f"{name} must be one of {names}, got {getattr(self, name)!r}")
        require(0 <= self.dropout < 1, "dropout", "from 0 to below 1")
        require(self.rpn_conv_depth >= 1, "rpn_conv_depth", "at least 1")
        require(1 <= self.in_channels <= 12, "in_channels", "from 1 to 12")


@dataclass
class ModelConfig(PartsConfig):
    """The section ``model`` of a recipe: the options of the builder that ``detector`` names.

    Those that are not explained here are in :class:`PartsConfig`, or are torchvision's arguments of
    the same name, for which null means the model's own choice. A key that the kind of model does
    not have is an error.

    Attributes:
        weights: Weights of a whole detector that training starts from, instead of
            ``weights_backbone``: ``DEFAULT`` or ``COCO_V1`` of torchvision's detector with these
            layers, the full name of others (``FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1``); a
            checkpoint file of torchvision (``.pth``) or detectron2 (``.pth``, ``.pkl``); the folder
            of a run, a ``.ckpt`` or a ``.safetensors``; or ``hub:owner/name`` of the Hugging Face
            Hub. Layers that do not fit, such as those of other classes, start new.
        detector: The kind of model. ``fast_rcnn`` takes its proposals as the section
            ``selective_search`` says; ``localizer`` finds one object in each image.
        channels_last: Whether weights and images are stored with channels last: faster on most
            GPUs in mixed precision.
        min_size: Shorter side of the image that the network sees, in pixels. Of several, one is
            drawn for each training image, and the last is used otherwise.
        max_size: Longest side that the network sees; it overrules ``min_size``.
        fixed_size: Width and height to which every image is brought instead, whatever its own. The
            only size that a localizer knows.
        box_bg_iou_low: Proposals below this IoU with every object are no background either.
        bbox_target_means: Means of the box targets, which are subtracted from them.
        bbox_target_stds: Standard deviations that the targets are divided by after that;
            1 / ``bbox_reg_weights``, so give one of the two.
        localizer: Options of a localizer alone.
    """

    detector: Literal["faster_rcnn", "fast_rcnn", "localizer"] = "faster_rcnn"
    weights: str | None = None
    channels_last: Bool = False
    min_size: Int | list[Int] = 800
    max_size: Int = 1333
    fixed_size: tuple[Int, Int] | None = None
    image_mean: list[Float] | None = None
    image_std: list[Float] | None = None
    rpn_pre_nms_top_n_train: Int | None = None
    rpn_pre_nms_top_n_test: Int | None = None
    rpn_post_nms_top_n_train: Int | None = None
    rpn_post_nms_top_n_test: Int | None = None
    rpn_nms_thresh: Float | None = None
    rpn_fg_iou_thresh: Float | None = None
    rpn_bg_iou_thresh: Float | None = None
    rpn_batch_size_per_image: Int | None = None
    rpn_positive_fraction: Float | None = None
    rpn_score_thresh: Float | None = None
    box_score_thresh: Float | None = None
    box_nms_thresh: Float | None = None
    box_detections_per_img: Int | None = None
    box_fg_iou_thresh: Float | None = None
    box_bg_iou_thresh: Float | None = None
    box_bg_iou_low: Float | None = None
    box_batch_size_per_image: Int | None = None
    box_positive_fraction: Float | None = None
    bbox_reg_weights: tuple[Float, Float, Float, Float] | None = None
    bbox_target_means: tuple[Float, Float, Float, Float] | None = None
    bbox_target_stds: tuple[Float, Float, Float, Float] | None = None
    localizer: LocalizerConfig = field(default_factory=LocalizerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.min_size if isinstance(self.min_size, list) else [self.min_size]
        require(bool(sizes) and min(sizes) >= 16, "min_size", "one or more sizes from 16")
        require(self.max_size >= 16, "max_size", "at least 16")
