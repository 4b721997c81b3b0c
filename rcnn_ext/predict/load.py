"""Load trained models, from whatever file they are in."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn
from torchvision.models import get_model_weights
from torchvision.models._api import WeightsEnum

from rcnn_ext import models
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.distributed import choose_device
from rcnn_ext.errors import UserError
from rcnn_ext.hub import is_hub_id
from rcnn_ext.models.weights import DownloadError
from rcnn_ext.predict.checkpoint import ModelNotFoundError
from rcnn_ext.predict.predictor import Predictor
from rcnn_ext.predict.saved import load_saved, prepare_detector

# The models that torchvision publishes detection weights for, under torchvision's names.
PUBLISHED = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
)


def load(
    path_or_name: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    prepare: bool = True,
    trust: bool = False,
) -> Predictor:
    """Return a trained model that is ready to detect.

    Files hold tensors and plain values, and ``.pt2`` files a graph of operators too; one with
    anything else in it, such as a pickle, is refused before any of it is used. A graph runs the
    operators of PyTorch that it names, on as much memory as it asks for. Packages of compiled code
    (``rcnn-ext export --format aoti``) are the exception, and need ``trust=True``.

    Args:
        path_or_name: The folder of a training run (its best, else its last checkpoint), a
            checkpoint (``.ckpt``), what ``rcnn-ext export`` wrote (``.safetensors``, ``.pt2``,
            ``.onnx`` with the extra ``onnx``, ``.xml`` with the extra ``openvino``),
            the name of a model with published weights, such as ``fasterrcnn_resnet50_fpn``, or a
            model on the Hugging Face Hub (``hub:owner/name``, ``hub:owner/name@revision``); these
            two are downloaded once. A file or folder goes before a name.
        device: The device to put it on, such as ``cuda:1``; ``auto`` takes a GPU where there is
            one.
        dtype: Floating-point type of weights and feature maps; None keeps float32. Boxes and scores
            are float32 with any.
        prepare: Whether to call ``prepare_for_inference``, which makes evaluation faster and
            training impossible. Programs (``.pt2``) are always prepared.
        trust: Whether a package of compiled code may be loaded. Such code can do anything that you
            can, so say so only of files whose maker you know.

    Returns:
        A model in evaluation mode. ``model.predict(pictures)`` takes paths, Pillow images, arrays
        and tensors; see :meth:`rcnn_ext.predict.predictor.Predictor.predict`. ``model(images)``
        takes a list of images [3, H_i, W_i], floating point in [0, 1], of any sizes, and gives for
        each a dict of ``boxes`` [D_i, 4] (x1, y1, x2, y2) in its pixels, ``labels`` [D_i] (int64,
        from 1) and ``scores`` [D_i], descending. Fast R-CNN takes ``model(images, proposals)`` with
        boxes [P_i, 4] for each image. ``model.class_names[label - 1]`` is the name of a label, and
        ``model.recipe`` the recipe that it was trained by, or None for published weights.

    Raises:
        ModelNotFoundError: No such file, folder or name exists. It is a ``FileNotFoundError``.
        ModelFormatError: It is not a model of this package, or is damaged. It is a ``ValueError``.
        UserError: The device does not exist; the weights cannot be downloaded; or the file is a
            package of compiled code, and ``trust`` is false.
        ValueError: ``dtype`` is not a floating-point type, or is given for a program or with
            ``prepare=False``.

    Example:
        >>> model = rcnn_ext.load("runs/first")
        >>> (found,) = model([torch.rand(3, 480, 640)])
        >>> [model.class_names[label - 1] for label in found["labels"]]
    """
    target = choose_device(device)
    path = Path(path_or_name)
    if path.exists() or is_hub_id(os.fspath(path_or_name)):
        saved = load_saved(path_or_name, trust=trust)
        return Predictor.of_saved(saved, target, dtype=dtype, prepare=prepare)
    if str(path_or_name) not in PUBLISHED:
        raise ModelNotFoundError(
            f"{path} is no file, no folder and no model with published weights: those are "
            f"{', '.join(PUBLISHED)}; models on the Hugging Face Hub are hub:owner/name"
        )
    detector, classes = _load_published(str(path_or_name), target)
    prepare_detector(detector, dtype=dtype, prepare=prepare)
    return Predictor(detector, classes)


def _load_published(name: str, device: torch.device) -> tuple[nn.Module, ClassList]:
    weights: WeightsEnum = get_model_weights(name).DEFAULT
    try:
        model = getattr(models, name)(weights=weights)
    except DownloadError as error:
        raise UserError(f"{error.remedies}, or load a model of your own") from error
    names = list(weights.meta["categories"])
    for label, class_name in enumerate(names):
        if names.index(class_name) != label:
            # COCO has ids without a class, which torchvision all calls "N/A".
            names[label] = f"{class_name} ({label})"
    labels = range(1, len(names))  # without the background
    return model.to(device).eval(), ClassList(tuple(names[1:]), tuple(labels))
