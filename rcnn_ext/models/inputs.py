"""From the user's images and targets to a checked, resized, normalized and padded batch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from rcnn_ext.models.box_utils import at_least_float32, first_bad_box
from rcnn_ext.models.channels import imagenet_statistics
from rcnn_ext.models.sampler import SEED

_TRANSFORM_OPTIONS = ("size_divisible", "fixed_size", "_skip_resize")


# Numbers in an image of 32 million pixels, 384 MB as float32, from which on it is normalized after
# resizing. This is the same but for rounding, as both are linear.
_LARGE_IMAGE = 3 << 25


class ResizeTransform(GeneralizedRCNNTransform):
    """torchvision's transform, which here never shrinks the side of an image to nothing.

    An image of 3x4000 pixels brought to a longer side of 1333 has a shorter one below 1, which
    torchvision rounds down to 0. Huge images are normalized after they are resized, as two further
    copies of one at its own size might not fit into memory.
    """

    def normalize(self, image: Tensor) -> Tensor:
        """Normalize an image [C, H, W]; a huge one is returned as it is, for :meth:`resize`."""
        return image if _is_huge(image) else super().normalize(image)

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Resize an image [C, H, W] and its boxes; each side keeps at least one pixel."""
        resized, target = self._resize(image, target)
        return (super().normalize(resized) if _is_huge(image) else resized), target

    def _resize(
        self, image: Tensor, target: dict[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        height, width = image.shape[-2:]
        scale = self.max_size / max(height, width)
        # With some room, since the product is rounded.
        thin = min(height, width) * scale < 1 + 1e-6
        if not thin or self.fixed_size is not None or (self.training and self._skip_resize):
            return super().resize(image, target)
        size = [max(1, round(side * scale)) for side in (height, width)]
        image = nn.functional.interpolate(
            image[None], size=size, mode="bilinear", align_corners=False
        )[0]
        if target is not None:
            target["boxes"] = resize_boxes(target["boxes"], [height, width], size)
        return image, target


def _is_huge(image: Tensor) -> bool:
    # A size that may be any while a graph is traced would be fixed by the comparison.
    return not torch.compiler.is_compiling() and image.numel() >= _LARGE_IMAGE


def build_transform(
    min_size: int | Sequence[int],
    max_size: int,
    image_mean: Sequence[float] | None,
    image_std: Sequence[float] | None,
    options: dict[str, Any],
    channels: int | None = None,
) -> GeneralizedRCNNTransform:
    """Make the transform that resizes, normalizes and batches images.

    Args:
        min_size: Length of the shorter side after resizing; of several, one is drawn in training
            and the last is used in evaluation.
        max_size: Largest length of the longer side; it overrules ``min_size``.
        image_mean: Mean of each channel; None means ImageNet's.
        image_std: Standard deviation of each channel; None means ImageNet's.
        options: Further arguments of torchvision's ``GeneralizedRCNNTransform``.
        channels: Channels of the images; None takes as many as ``image_mean`` and ``image_std``
            have, else three. ``imagenet_statistics`` has the defaults of other than three.

    Raises:
        ValueError: Means and deviations are not equally many, or not as many as the channels.
        TypeError: Unknown option. torchvision ignores those, so that a misspelled option of a model
            would have no effect.
    """
    for name in options:
        if name in ("pretrained", "pretrained_backbone"):
            raise TypeError(
                f"{name}= is gone, as in torchvision; use weights= or weights_backbone="
            )
        if name not in _TRANSFORM_OPTIONS:
            raise TypeError(f"the model has no option {name!r}")
    if channels is None:
        # A backbone of one's own need not say its channels: the statistics do.
        channels = len(image_mean) if image_mean is not None and image_std is not None else 3
    mean, std = imagenet_statistics(channels)
    mean = mean if image_mean is None else list(image_mean)
    std = std if image_std is None else list(image_std)
    for name, values in (("image_mean", mean), ("image_std", std)):
        if len(values) != channels:
            raise ValueError(
                f"{name} has {len(values)} numbers, and images have {channels} channels "
                "(in_channels)"
            )
    return ResizeTransform(
        min_size,
        max_size,
        mean,
        std,
        **options,
    )


def prepare_batch(
    transform: GeneralizedRCNNTransform,
    images: Sequence[Tensor],
    targets: Sequence[dict[str, Tensor]] | None,
    *,
    training: bool,
) -> tuple[ImageList, list[dict[str, Tensor]] | None, list[tuple[int, int]]]:
    """Check and transform a batch.

    Args:
        transform: Transform made by ``build_transform``.
        images: N images [3, H_i, W_i], floating point in [0, 1].
        targets: For each image ``boxes`` [G_i, 4] (x1, y1, x2, y2) in its pixels, floating point,
            and ``labels`` [G_i] int64 from 1. A ``seed`` is passed on, see ``image_generator``;
            other entries are ignored. May be None in evaluation.
        training: Whether targets are needed.

    Returns:
        The batch; the targets with boxes in pixels of the resized images, float32 at least, or
        None; the sizes (height, width) of the original images.

    Raises:
        ValueError: An image or a target is malformed; the message names it.
    """
    images = list(images)
    _check_images(images, channels=len(transform.image_mean))
    original_sizes = [(image.shape[1], image.shape[2]) for image in images]
    if targets is None:
        if training:
            raise ValueError("targets must be given in training mode")
        return transform(images)[0], None, original_sizes

    targets = list(targets)
    _check_targets(targets, images)
    batch, resized = transform(
        images,
        # Half types would lose whole pixels in resizing. Masks and the like need no resizing.
        [{"boxes": at_least_float32(t["boxes"]), "labels": t["labels"]} for t in targets],
    )
    # After resizing, since that can flatten a box that has a tiny width to begin with.
    bad = first_bad_box([target["boxes"] for target in resized])
    if bad is not None:
        image, box = bad
        raise ValueError(
            f"targets[{image}]['boxes'][{box}] is {targets[image]['boxes'][box].tolist()}; boxes "
            "are (x1, y1, x2, y2) and need finite coordinates, x1 < x2 and y1 < y2"
        )
    dtype = torch.promote_types(batch.tensors.dtype, torch.float32)
    for target, given in zip(resized, targets, strict=True):
        target["boxes"] = target["boxes"].to(dtype)
        if SEED in given:
            target[SEED] = given[SEED]
    return batch, resized, original_sizes


def backbone_features(backbone: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Run the backbone on images [N, 3, H, W]; a single map is named "0"."""
    features = backbone(images)
    return OrderedDict([("0", features)]) if isinstance(features, Tensor) else features


def check_labels(labels: list[Tensor], num_classes: int) -> None:
    """Check that every label is a class other than background.

    Args:
        labels: One int64 tensor [G_i] per image.
        num_classes: Number of classes, background (0) included.

    Raises:
        ValueError: A label is not a class; the message names it and its image.
    """
    if torch.compiler.is_compiling():
        return  # A graph cannot raise for the values that it meets.
    together = torch.cat(labels)
    if bool(((together >= 1) & (together < num_classes)).all()):
        return
    for image, in_image in enumerate(labels):
        for label in in_image.tolist():
            if not 1 <= label < num_classes:
                raise ValueError(
                    f"targets[{image}]['labels'] contains {label}; labels of a model with "
                    f"{num_classes} classes run from 1 to {num_classes - 1} (0 is the background; "
                    "an image without objects has boxes [0, 4] and labels [0])"
                )


def _check_images(images: list[Tensor], channels: int) -> None:
    if len(images) == 0:
        raise ValueError("images is empty; expected at least one image")
    for i, image in enumerate(images):
        if not isinstance(image, Tensor):
            raise ValueError(f"images[{i}] is a {type(image).__name__}; expected a tensor")
        if image.dim() != 3 or image.shape[0] != channels or image.numel() == 0:
            raise ValueError(
                f"images[{i}] has shape {list(image.shape)}; expected [{channels}, height, width]"
            )
        if not image.is_floating_point():
            raise ValueError(
                f"images[{i}] has dtype {image.dtype}; expected floating point in [0, 1]"
            )


def _check_targets(targets: list[dict[str, Tensor]], images: list[Tensor]) -> None:
    """Check all but the values, which need a synchronization; those are checked once per batch."""
    if len(targets) != len(images):
        raise ValueError(f"{len(images)} images but {len(targets)} targets were given")
    for i, (target, image) in enumerate(zip(targets, images, strict=True)):
        for name in ("boxes", "labels"):
            if name not in target:
                raise ValueError(f"targets[{i}] has no {name!r}")
            if not isinstance(target[name], Tensor):
                raise ValueError(
                    f"targets[{i}][{name!r}] is a {type(target[name]).__name__}; expected a tensor"
                )
            if target[name].device != image.device:
                raise ValueError(
                    f"targets[{i}][{name!r}] is on {target[name].device}, its image on "
                    f"{image.device}"
                )
        boxes, labels = target["boxes"], target["labels"]
        check_box_tensor(boxes, f"targets[{i}]['boxes']")
        if labels.dtype != torch.int64:
            raise ValueError(f"targets[{i}]['labels'] has dtype {labels.dtype}; expected int64")
        if labels.shape != boxes.shape[:1]:
            raise ValueError(
                f"targets[{i}]['labels'] has shape {list(labels.shape)}; expected "
                f"[{len(boxes)}], one label for each box"
            )


def check_box_tensor(boxes: Tensor, name: str) -> None:
    """Check that ``boxes`` is a floating-point tensor [P, 4]; ``name`` is how to call it.

    Raises:
        ValueError: Wrong shape or dtype; the message names the tensor.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"{name} has shape {list(boxes.shape)}; expected [number of boxes, 4], "
            "[0, 4] for an image without boxes"
        )
    if not boxes.is_floating_point():
        raise ValueError(f"{name} has dtype {boxes.dtype}; expected floating point")
