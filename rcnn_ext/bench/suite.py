"""The suite: every operator, at the sizes that detectors use.

Boxes have centers uniform in 1333 x 800 pixels and sides of 8 to 208; seeds are fixed. The targets
are the project's own: ratios to torchvision, on one CPU thread (AVX-512 unless a row says AVX2) or
on a GPU of the H200's class.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from rcnn_ext.bench.cases import (
    Case,
    DetectionCase,
    IouCase,
    MatchCase,
    MergingCase,
    NmsCase,
    ProposalCase,
    PyramidCase,
    RoiCase,
    SoftNmsCase,
    Targets,
)
from rcnn_ext.errors import UserError

_NO_TARGET = Targets()
_CPU = ("cpu",)
_CUDA = ("cuda",)
_BOTH = ("cpu", "cuda")
_FULL_AND_HALF = (torch.float32, torch.bfloat16)
_IOU_VARIANTS = ("generalized_box_iou", "distance_box_iou", "complete_box_iou", "box_ios")


def suite(quick: bool) -> list[Case]:
    """Return the cases of the quick suite or of the full one, for all devices.

    Args:
        quick: The small suite, which ends within a minute on two CPU cores.
    """
    if quick:
        return _quick()
    return [
        *_iou(),
        *_matching(),
        *_suppression(),
        *_proposals(),
        *_roi_align(),
        *_roi_pool(),
        *_pyramid(),
    ]


def growth() -> list[Case]:
    """Return the cases whose cost is plotted against their size, CPU only.

    Beyond 30,000 boxes torchvision's NMS takes tens of seconds, and at a million some 20 minutes.
    """
    boxes = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
    rois = (10, 30, 100, 300, 1_000, 3_000, 10_000)
    return [
        *(
            dataclasses.replace(_nms(count, devices=_CPU), only_ours=count > 30_000)
            for count in boxes
        ),
        *(RoiCase("roi_align", devices=_CPU, rois=count, channels=64) for count in rois),
        *(
            RoiCase("roi_align", devices=_CPU, rois=count, channels=64, backward=True)
            for count in rois
        ),
    ]


def select(cases: list[Case], device: str, pattern: str | None = None) -> list[Case]:
    """Keep the cases of a device type whose name contains a pattern.

    Args:
        cases: The suite.
        device: ``cpu`` or ``cuda``.
        pattern: Text to look for in the names; none keeps all.

    Raises:
        UserError: Nothing is left.
    """
    here = [case for case in cases if device in case.devices]
    kept = [case for case in here if pattern is None or pattern in case.name]
    if not kept:
        names = ", ".join(case.name for case in here)
        raise UserError(f"no case matches {pattern!r}; there are: {names}")
    return kept


def targets_first(cases: list[Case], device: str) -> list[Case]:
    """Order cases so that those with a target on a device type (``cpu``, ``cuda``) come first."""

    def has_none(case: Case) -> bool:
        return (case.targets.cuda if device == "cuda" else case.targets.cpu) is None

    return sorted(cases, key=has_none)


def _iou() -> list[Case]:
    return [
        # Overhead of a call.
        IouCase("box_iou", devices=_CPU, rows=1, columns=1),
        IouCase("box_iou", Targets(cpu=20), rows=2_000, columns=100),
        IouCase("box_iou", Targets(cpu=30), rows=200_000, columns=20),
        IouCase("box_iou", Targets(cpu=12, cuda=8), rows=200_000, columns=100),
        *(IouCase(name, rows=2_000, columns=100) for name in _IOU_VARIANTS),
        *_iou_backward(2_000, 100),
    ]


def _iou_backward(rows: int, columns: int) -> list[Case]:
    return [
        IouCase(name, rows=rows, columns=columns, backward=True)
        for name in ("box_iou", *_IOU_VARIANTS)
    ]


def _matching() -> list[Case]:
    return [
        MatchCase("match_boxes", Targets(cpu=120), _CPU, boxes=200_000, gts=20),
        MatchCase("match_boxes", Targets(cpu=200), _CPU, boxes=200_000, gts=100),
        MatchCase("match_boxes", Targets(cpu=60), _CPU, boxes=200_000, gts=20, grid=False),
        MatchCase("match_boxes", Targets(cpu=90), _CPU, boxes=200_000, gts=100, grid=False),
        MatchCase("match_boxes", Targets(cuda=10), _CUDA, boxes=267_000, gts=100),
    ]


def _suppression() -> list[Case]:
    plain = (
        (1, _NO_TARGET, _CPU),
        (100, Targets(cpu=5), _BOTH),
        (500, Targets(cuda=3), _CUDA),
        (1_000, Targets(cpu=30, cuda=3), _BOTH),
        (2_000, Targets(cpu=60, cuda=3), _BOTH),
        (5_000, Targets(cpu=120, cuda=3), _BOTH),
        (10_000, Targets(cpu=180), _CPU),
        (20_000, Targets(cuda=3), _CUDA),
        (50_000, Targets(cpu=350), _CPU),
        (100_000, Targets(cuda=5), _CUDA),
    )
    by_class = (
        (1_000, Targets(cpu=15, cuda=3), _BOTH),
        (10_000, Targets(cpu=20, cuda=4), _BOTH),
        (50_000, Targets(cpu=25), _CPU),
        (100_000, Targets(cuda=8), _CUDA),
    )
    return [
        *(_nms(count, targets, devices) for count, targets, devices in plain),
        *(_nms(count, targets, devices, 80) for count, targets, devices in by_class),
        *_soft_nms(1_000, 5_000),
        *_merging(1_000, 5_000),
    ]


def _soft_nms(*counts: int) -> list[SoftNmsCase]:
    return [
        SoftNmsCase("soft_nms", count=count, method=method)
        for count in counts
        for method in ("linear", "gaussian")
    ]


def _merging(*counts: int) -> list[MergingCase]:
    return [
        MergingCase("non_max_merging", count=count, metric=metric)
        for count in counts
        for metric in ("iou", "ios")
    ]


def _proposals() -> list[Case]:
    targets = Targets(cpu=6, cuda=4)
    return [
        *(ProposalCase("generate_proposals", targets, images=images) for images in (1, 2)),
        *(DetectionCase("postprocess_detections", targets, images=images) for images in (1, 2)),
    ]


def _nms(
    count: int,
    targets: Targets = _NO_TARGET,
    devices: tuple[str, ...] = _BOTH,
    classes: int = 0,
) -> NmsCase:
    return NmsCase(
        "batched_nms" if classes else "nms",
        targets,
        devices,
        count=count,
        classes=classes,
    )


def _roi_align() -> list[Case]:
    def on_cpu(rois: int = 512, targets: Targets = _NO_TARGET, **options: Any) -> RoiCase:
        return RoiCase("roi_align", targets, _CPU, rois=rois, **options)

    def on_cuda(rois: int = 1_000, targets: Targets = _NO_TARGET, **options: Any) -> RoiCase:
        return RoiCase("roi_align", targets, _CUDA, rois=rois, **options)

    forward = Targets(cpu=12, cpu_avx2=8)
    backward = Targets(cpu=18, cpu_avx2=11)
    return [
        *(on_cpu(rois) for rois in (64, 128, 256)),
        on_cpu(targets=forward),
        on_cpu(targets=Targets(cpu=18, cpu_avx2=13), sampling_ratio=0),
        on_cpu(targets=Targets(cpu=10), sides=(8.0, 40.0)),
        on_cpu(targets=Targets(cpu=15), channels_last=True),
        on_cpu(targets=backward, backward=True),
        on_cpu(targets=Targets(cpu=30, cpu_avx2=11), sampling_ratio=0, backward=True),
        on_cpu(channels_last=True, backward=True),
        *(on_cuda(rois) for rois in (64, 256)),
        on_cuda(targets=Targets(cuda=2), dtypes=_FULL_AND_HALF),
        on_cuda(targets=Targets(cuda=4), dtypes=_FULL_AND_HALF, channels_last=True),
        on_cuda(targets=Targets(cuda=3), dtypes=_FULL_AND_HALF, backward=True),
        on_cuda(targets=Targets(cuda=3), dtypes=_FULL_AND_HALF, channels_last=True, backward=True),
        on_cuda(sampling_ratio=0),
        on_cuda(sampling_ratio=0, backward=True),
    ]


def _roi_pool() -> list[Case]:
    return [
        RoiCase("roi_pool", Targets(cpu=12), _CPU, rois=512),
        RoiCase("roi_pool", Targets(cpu=3), _CPU, rois=512, backward=True),
        RoiCase("roi_pool", devices=_CUDA, rois=1_000),
        RoiCase("roi_pool", devices=_CUDA, rois=1_000, backward=True),
        RoiCase("roi_pool", devices=_CUDA, rois=1_000, channels_last=True),
        RoiCase("roi_pool", devices=_CUDA, rois=1_000, channels_last=True, backward=True),
    ]


def _pyramid() -> list[Case]:
    name = "multi_scale_roi_align"
    many: dict[str, Any] = {"devices": _CUDA, "dtypes": _FULL_AND_HALF, "rois": 2_000}
    return [
        PyramidCase(name, Targets(cpu=12, cpu_avx2=8, cuda=4), rois=1_000),
        PyramidCase(name, Targets(cpu=18, cpu_avx2=11), rois=1_000, backward=True),
        PyramidCase(name, rois=1_000, channels_last=True),
        PyramidCase(name, Targets(cuda=4), **many),
        PyramidCase(name, **many, backward=True),
        PyramidCase(name, **many, channels_last=True),
        PyramidCase(name, **many, channels_last=True, backward=True),
    ]


def _quick() -> list[Case]:
    def roi(operator: str, rois: int = 128, **options: Any) -> RoiCase:
        return RoiCase(operator, rois=rois, channels=64, map_size=(50, 76), **options)

    def pyramid(backward: bool) -> PyramidCase:
        name = "multi_scale_roi_align"
        return PyramidCase(name, rois=128, channels=64, finest=(56, 80), backward=backward)

    return [
        IouCase("box_iou", rows=2_000, columns=100),
        *(IouCase(name, rows=500, columns=50) for name in _IOU_VARIANTS),
        *_iou_backward(500, 50),
        MatchCase("match_boxes", boxes=10_000, gts=20),
        ProposalCase("generate_proposals", images=1, scale=4),
        DetectionCase("postprocess_detections", images=1, rois=300, classes=21),
        *(_nms(count) for count in (100, 500, 1_000, 2_000, 5_000)),
        _nms(2_000, classes=80),
        *_soft_nms(500),
        *_merging(500),
        *(roi("roi_align", rois) for rois in (16, 32, 64, 128)),
        roi("roi_align", sampling_ratio=0),
        roi("roi_align", channels_last=True),
        roi("roi_align", backward=True),
        roi("roi_align", sampling_ratio=0, backward=True),
        roi("roi_align", channels_last=True, backward=True),
        roi("roi_pool"),
        roi("roi_pool", backward=True),
        pyramid(backward=False),
        pyramid(backward=True),
    ]


def tiny() -> list[Case]:
    """Return one small case for each operator and variant: a self-test, too small to time."""

    def roi(operator: str, **options: Any) -> RoiCase:
        return RoiCase(operator, rois=9, channels=5, map_size=(13, 17), **options)

    pyramid = PyramidCase("multi_scale_roi_align", rois=9, channels=3, finest=(32, 40))
    return [
        *(IouCase(name, rows=17, columns=9) for name in ("box_iou", *_IOU_VARIANTS)),
        *_iou_backward(17, 9),
        ProposalCase("generate_proposals", images=2, scale=16),
        DetectionCase("postprocess_detections", images=2, rois=50, classes=6),
        MatchCase("match_boxes", boxes=300, gts=5, grid=False),
        _nms(300),
        _nms(300, classes=5),
        *_soft_nms(100),
        *_merging(100),
        roi("roi_align"),
        roi("roi_align", sampling_ratio=0),
        roi("roi_align", channels_last=True),
        roi("roi_align", backward=True),
        roi("roi_align", channels_last=True, backward=True),
        roi("roi_pool"),
        roi("roi_pool", backward=True),
        pyramid,
        dataclasses.replace(pyramid, backward=True),
    ]
