"""The base of all models: preparation for inference, and the core that is exported."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, cast

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from typing_extensions import Self  # torch itself requires it

from rcnn_ext.models.box_heads import flatten_channels_last
from rcnn_ext.models.core import DetectionCore, PaddedDetections
from rcnn_ext.models.folding import fold_norms
from rcnn_ext.models.fusion import FusionReport, fuse_layers, restore_classes
from rcnn_ext.models.graph_inputs import GraphInputs, cut_detections
from rcnn_ext.models.inputs import prepare_batch
from rcnn_ext.models.poolers import RoIPooler
from rcnn_ext.models.proposals import resize_proposals
from rcnn_ext.ops import MultiScaleRoIAlign
from rcnn_ext.ops._torchscript import refuse_torchscript

# Where the arithmetic is: transform, RPN and RoI heads have code around theirs.
_COMPUTING_PARTS = (
    "backbone",
    "rpn.head",
    "roi_heads.box_head",
    "roi_heads.box_predictor",
    "class_head",
    "box_head",
)


class Detector(nn.Module):
    """Base of the models."""

    backbone: nn.Module
    transform: GeneralizedRCNNTransform

    def __init__(self) -> None:
        super().__init__()
        # Chosen by ``prepare_for_inference``; None in a model that can still be trained.
        self._compute: tuple[torch.dtype, torch.memory_format] | None = None
        # What it changed in the networks; None likewise.
        self.preparation_report: FusionReport | None = None

    @property
    def is_prepared(self) -> bool:
        """Whether the model was prepared for inference, and has other weights than it learned."""
        return self._compute is not None

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse ``torch.jit.script``, which calls this first."""
        refuse_torchscript(type(self).__name__)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation.

        Raises:
            RuntimeError: The model was prepared for inference.
        """
        if mode and self.is_prepared:
            raise RuntimeError(
                "this model was prepared for inference: its batch norms are gone and its weights "
                "may be rounded, so it cannot be trained; build it anew from its checkpoint"
            )
        return super().train(mode)

    def prepare_for_inference(
        self,
        *,
        dtype: torch.dtype | Literal["auto"] | None = "auto",
        channels_last: bool = True,
        compile: bool | dict[str, Any] = False,
    ) -> Self:
        """Make evaluation fast, in place; training is no longer possible.

        Batch norms go into the convolutions before them, and no gradient is recorded. On a CPU,
        weights are packed once for oneDNN, and activations, residual sums and the predictors of one
        map run in one pass; ``preparation_report`` says which layers were changed, which were not
        and why, and the memory that packed weights take. Parameters and state dicts stay those of
        the layers.

        The model keeps its device; move it before. Detections stay the same within the rounding of
        ``dtype``: bfloat16 has two to three digits, so that one near a threshold may come or go.

        Args:
            dtype: Type of weights and feature maps. "auto" is bfloat16 where the device computes in
                it natively (else float16 on CUDA, else as it is); None leaves it as it is. Images
                may come in any floating-point type; boxes and scores stay float32.
            channels_last: Store weights and feature maps with channels last, which packed weights
                need.
            compile: Run the networks through ``torch.compile``, with these options if it is a dict,
                instead of packed weights. Each new size of image may compile anew.

        Returns:
            The model itself, in evaluation mode.

        Example:
            >>> model = fasterrcnn_resnet50_fpn(weights="DEFAULT").prepare_for_inference()
            >>> detections = model(images)
        """
        parameter = next(self.backbone.parameters())
        if dtype == "auto":
            dtype = fast_dtype(parameter.device)
        dtype = dtype or parameter.dtype
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type, got {dtype}")
        layout = torch.channels_last if channels_last else torch.contiguous_format
        restore_classes(self)
        self.eval().requires_grad_(False)
        fold_norms(self)
        for name in _COMPUTING_PARTS:
            try:
                part = self.get_submodule(name)
            except AttributeError:  # this kind of model has no such part
                continue
            part.to(dtype=dtype)
            # Linear layers have no layout; torch refuses those of other than four dimensions.
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.to(memory_format=layout)
            if channels_last and name == "roi_heads.box_head" and self._pools_all_channels():
                flatten_channels_last(part, cast(int, self.backbone.out_channels))
            if compile:
                part.compile(**(compile if isinstance(compile, dict) else {}))
        self._compute = (dtype, layout)
        if compile:
            self.preparation_report = FusionReport(kept={"": "torch.compile runs the networks"})
        elif not channels_last:
            self.preparation_report = FusionReport(kept={"": "packed weights need channels_last"})
        else:
            self.preparation_report = fuse_layers(self)
        return self

    def core(self) -> DetectionCore:
        """Return the part of the detector that is one function of tensors, with its weights.

        Raises:
            RuntimeError: The detector is in training mode.
        """
        return DetectionCore(self)

    @torch.compiler.disable
    def _graph_inputs(
        self,
        images: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]] | None = None,
        proposals: Sequence[Tensor] | None = None,
    ) -> GraphInputs:
        """Check, resize and pad what ``forward`` is given, outside of the graph that follows."""
        batch, resized, original_sizes = prepare_batch(
            self.transform, images, targets, training=self.training
        )
        scaled = None if proposals is None else resize_proposals(proposals, batch, original_sizes)
        return GraphInputs.of(batch, original_sizes, resized, scaled)

    def _detect_compiled(
        self, images: Sequence[Tensor], proposals: Sequence[Tensor] | None = None
    ) -> list[dict[str, Tensor]]:
        """Detect while ``forward`` is compiled: one graph, the core."""
        batch = self._graph_inputs(images, None, proposals)
        found = self.detect_padded(
            batch.images, batch.sizes, batch.proposals, batch.proposal_counts
        )
        return cut_detections(found, batch.ratios)

    @abstractmethod
    def detect_padded(
        self,
        images: Tensor,
        image_sizes: Tensor,
        proposals: Tensor | None = None,
        proposal_counts: Tensor | None = None,
        *,
        strides: Mapping[str, float] | None = None,
    ) -> PaddedDetections:
        """Detect objects in a batch that is resized, normalized and padded already.

        Args:
            images: [N, 3, H, W], as for :meth:`rcnn_ext.models.core.DetectionCore.forward`.
            image_sizes: [N, 2] float32 (height, width) of each image without padding.
            proposals: [N, P, 4] (x1, y1, x2, y2), pixels of ``images``, for Fast R-CNN.
            proposal_counts: [N] int64, how many proposals of an image are real; None means all.
            strides: Pixels from one position of each feature map to the next, by name; None
                measures them in this call, by the sizes of maps and images.

        Returns:
            Boxes [N, D, 4], scores [N, D], labels [N, D] and counts [N], padded with zeros.

        Raises:
            ValueError: Proposals are missing for Fast R-CNN, or given to another detector.
        """

    def needs_strides(self) -> bool:
        """Return whether :meth:`detect_padded` measures strides unless it is given them."""
        return False

    def _pools_all_channels(self) -> bool:
        """Return whether pooled features have the channels of the backbone: a pooler is known."""
        pooler = self.get_submodule("roi_heads.box_roi_pool")
        return isinstance(pooler, MultiScaleRoIAlign | RoIPooler)

    def to_compute(self, images: Tensor) -> Tensor:
        """Convert a batch [N, 3, H, W] to the dtype and memory format of a prepared model."""
        if self._compute is None:
            return images
        dtype, layout = self._compute
        return images.to(dtype=dtype, memory_format=layout)


def is_compiling_only() -> bool:
    """Return whether ``torch.compile`` traces this, and not ``torch.export``."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def fast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the half type that a device computes in natively, or None."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu":
        # Instructions, not only a conversion: AMX or AVX512-BF16. torch gives no public name.
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        if any(getattr(torch.cpu, check, lambda: False)() for check in checks):
            return torch.bfloat16
    return None
