"""Calls of the operators of boxes, around the sizes at which a kernel begins a new tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from rcnn_ext import ops
from tests.helpers.emulation.case import Case, boxes


def _together(results: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([result.flatten().double() for result in results])


def _box_iou_cases() -> list[Case]:
    measures = {
        "box_iou": ops.box_iou,
        "generalized_box_iou": ops.generalized_box_iou,
        "distance_box_iou": ops.distance_box_iou,
        "complete_box_iou": ops.complete_box_iou,
        "box_ios": ops.box_ios,
    }
    made = []
    for name, measure in measures.items():
        complete = name == "complete_box_iou"  # the arc tangent is the library's

        def grads(rows: int, columns: int, batch: int = 1) -> Callable[[], tuple[Tensor, ...]]:
            def make() -> tuple[Tensor, ...]:
                shape = (batch, -1, 4) if batch > 1 else (-1, 4)
                return tuple(boxes(batch * n).view(shape).requires_grad_() for n in (rows, columns))

            return make

        # Tiles of 64 rows and up to 256 columns, four a thread.
        for rows, columns in ((1, 1), (65, 129), (64, 256), (150, 5), (3, 260)):
            made.append(
                Case(
                    f"{name}-{rows}x{columns}",
                    grads(rows, columns),
                    measure,
                    exact_on_device=not complete,
                )
            )
        made.append(Case(f"{name}-batched", grads(34, 3, 5), measure, exact_on_device=not complete))
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64):
        made.append(
            Case(
                f"box_iou-{dtype}",
                lambda dtype=dtype: (boxes(37, dtype=dtype), boxes(131, dtype=dtype)),
                ops.box_iou,
            )
        )
    return made


def _nms_cases() -> list[Case]:
    def make(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        made = boxes(count, size=20 + count**0.5 * 4, dtype=dtype)
        made[7::50] = float("nan")
        made[9::50, 2] = float("inf")
        return made, torch.randint(0, 200, (count,)) / 200

    def make_batched(count: int, classes: int) -> tuple[Tensor, ...]:
        return *make(count), torch.randint(-1, classes - 1, (count,))

    def make_apart(count: int) -> tuple[Tensor, ...]:
        low = torch.arange(count).float()[:, None] * torch.tensor([3.0, 1.0])
        return torch.cat([low, low + 2], dim=1), torch.rand(count)

    def make_twins() -> tuple[Tensor, ...]:
        apart = make_apart(300)[0]
        return torch.cat([apart, apart]), torch.rand(600)

    def nms(b: Tensor, s: Tensor) -> Tensor:
        return ops.nms(b, s, 0.4)

    def batched_nms(b: Tensor, s: Tensor, c: Tensor) -> Tensor:
        return ops.batched_nms(b, s, c, 0.4)

    def soft(method: str, least: float = 0.05) -> Callable[..., Tensor]:
        def call(b: Tensor, s: Tensor, *c: Tensor) -> Tensor:
            operator = ops.batched_soft_nms if c else ops.soft_nms
            keep, rescored = operator(b, s, *c, score_threshold=least, method=method)
            return torch.stack([keep.to(rescored.dtype), rescored])

        return call

    made = [
        Case(f"soft_nms-{count}", lambda count=count: make(count), soft("linear"), exact=True)
        for count in (1, 33, 130, 513)
    ]
    made += [
        # A box whose twin is taken has a score of 0, and stays.
        Case("soft_nms-twins", lambda: make(60), soft("linear", 0.0), exact=True),
        Case("soft_nms-gaussian", lambda: make(130, torch.float64), soft("gaussian")),
        Case("batched_soft_nms-300-9", lambda: make_batched(300, 9), soft("linear"), exact=True),
    ]
    made += [
        Case(f"nms-{count}", lambda count=count: make(count), nms, exact=True)
        for count in (1, 31, 64, 65, 257, 1100)  # groups of 64, and more of them than warps
    ]
    made += [
        Case(f"nms-{dtype}", lambda dtype=dtype: make(400, dtype), nms, exact=True)
        for dtype in (torch.float16, torch.bfloat16, torch.float64)
    ]
    # Every box is kept; then each but its twin, whichever comes first.
    made.append(Case("nms-apart", lambda: make_apart(300), nms, exact=True))
    made.append(Case("nms-twins", make_twins, nms, exact=True))
    made += [
        Case(
            f"nms_padded-{count}-{size}",
            lambda count=count: make(count),
            lambda b, s, size=size: _together(ops.nms_padded(b, s, 0.4, size)),
            exact=True,
        )
        for count, size in ((1, 3), (300, 5), (400, 100), (200, 200))
    ]
    made += [
        Case(
            f"batched_nms_padded-{count}-{size}",
            lambda count=count: make_batched(count, 3),
            lambda b, s, c, size=size: _together(ops.batched_nms_padded(b, s, c, 0.4, size)),
            exact=True,
        )
        for count, size in ((300, 9), (1100, 1050))
    ]
    made += [
        Case(
            f"batched_nms-{count}-{classes}",
            lambda count=count, classes=classes: make_batched(count, classes),
            batched_nms,
            exact=True,
        )
        for count, classes in ((1, 1), (300, 3), (400, 2), (700, 40))
    ]
    return made


def _merging_cases() -> list[Case]:
    def make(count: int, classes: int = 1, dtype: torch.dtype = torch.float32) -> Callable:
        def call() -> tuple[Tensor, ...]:
            made = boxes(count, size=20 + count**0.5 * 4, dtype=dtype)
            made[count // 2, 0] = torch.nan
            scores = torch.randint(1, count + 1, (count,)) / count  # with ties
            return made, scores, torch.randint(0, classes, (count,))

        return call

    def merge(metric: Literal["iou", "ios"], threshold: float = 0.3) -> Callable[..., Tensor]:
        def call(b: Tensor, s: Tensor, c: Tensor) -> Tensor:
            merged = ops.non_max_merging(b, s, c, threshold, metric)
            return _together((merged.boxes, merged.indices, merged.groups))

        return call

    # 512 threads claim, 128 merge.
    made = [
        Case(f"non_max_merging-{count}-{metric}", make(count), merge(metric), exact=True)
        for count, metric in ((1, "iou"), (33, "ios"), (129, "iou"), (600, "ios"))
    ]
    return [
        *made,
        Case("non_max_merging-400-7", make(400, 7), merge("ios"), exact=True),
        Case("non_max_merging-float64", make(150, 2, torch.float64), merge("iou", 0.1), exact=True),
        Case("non_max_merging-all", make(150), merge("iou", 0.0), exact=True),
    ]


def _match_cases() -> list[Case]:
    def make(
        gts: int, count: int, dtype: torch.dtype = torch.float32, nan: bool = False
    ) -> tuple[Tensor, ...]:
        # With a NaN, the best IoU of every ground truth is NaN, which no box has.
        truth, made = boxes(gts, size=60, dtype=dtype), boxes(count, size=60, dtype=dtype)
        if nan:
            made[7::50] = float("nan")
        made[9::50, 2:] = made[9::50, :2]
        return truth, made

    def matches(low_quality: bool, images: int) -> Callable[[Tensor, Tensor], Tensor]:
        def call(truth: Tensor, made: Tensor) -> Tensor:
            if images == 1:
                found, best = ops.match_boxes(truth, made, 0.95, 0.5, low_quality)
            else:
                gts = [truth[:0], *truth.tensor_split(images - 1)]
                parts = list(made.tensor_split(images))
                found, best = ops.batched_match_boxes(gts, parts, 0.95, 0.5, low_quality)
            return torch.stack([found.to(best.dtype), best])

        return call

    made = []
    # A high threshold, so that it shows who claims a box.
    # Tiles of 128 ground truths, blocks of 1024 boxes.
    for low_quality in (False, True):
        for gts, count in ((1, 1), (128, 257), (129, 1025), (300, 2100)):
            made.append(
                Case(
                    f"match_boxes-{gts}x{count}-{low_quality}",
                    lambda gts=gts, count=count, nan=not low_quality: make(gts, count, nan=nan),
                    matches(low_quality, 1),
                    exact=True,
                )
            )
    made.append(Case("match_boxes-batch", lambda: make(140, 5000), matches(True, 3), exact=True))
    made += [
        Case(
            f"match_boxes-{dtype}", lambda dtype=dtype: make(9, 300, dtype), matches(True, 1), True
        )
        for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int64)
    ]
    return made


def _steps(*shape: int, step: float) -> Tensor:
    """Normal numbers in steps: exponentials that differ in the last bit keep their order."""
    return (2 * torch.randn(shape) / step).round() * step


def _proposal_cases() -> list[Case]:
    def make(
        grids: tuple[tuple[int, int, int], ...],
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> tuple[Tensor, ...]:
        logits = [_steps(2, k, h, w, step=1 / 16) for k, h, w in grids]
        logits[0].view(-1)[5::211] = float("nan")
        deltas = [_steps(2, 4 * k, h, w, step=1 / 64) / 4 for k, h, w in grids]
        maps = [m.to(dtype).contiguous(memory_format=layout) for m in (*logits, *deltas)]
        anchors = boxes(sum(k * h * w for k, h, w in grids), size=200)
        return *maps, anchors, torch.tensor([[200.0, 180], [150, 190]])

    def propose(pre: int, post: int, threshold: float = 0.5) -> Callable[..., Tensor]:
        def call(*arguments: Tensor) -> Tensor:
            maps, (anchors, sizes) = arguments[:-2], arguments[-2:]
            half = len(maps) // 2
            return _together(
                ops.generate_proposals(
                    maps[:half],
                    maps[half:],
                    anchors,
                    sizes,
                    pre_nms_top_n=pre,
                    post_nms_top_n=post,
                    iou_threshold=threshold,
                    min_size=3.0,
                )
            )

        return call

    pyramid, many = ((3, 30, 31), (2, 9, 9), (1, 2, 3)), ((1, 3, 4),) * 10
    options: dict = {"tolerance": 1e-4, "exact_on_device": False}  # exponentials are the platform's
    made = [
        Case("generate_proposals", lambda: make(pyramid), propose(130, 100), **options),
        Case(
            "generate_proposals-channels_last",
            lambda: make(pyramid, layout=torch.channels_last),
            propose(130, 30),
            **options,
        ),
        # More levels than a launch takes, all of each, and every box kept.
        Case("generate_proposals-levels", lambda: make(many), propose(50, 1000, 1.0), **options),
    ]
    for dtype in (torch.float16, torch.float64):
        made.append(
            Case(
                f"generate_proposals-{dtype}",
                lambda dtype=dtype: make(pyramid, dtype),
                propose(70, 50),
                **options,
            )
        )
    return made


def _detection_cases() -> list[Case]:
    def make(
        count: int, classes: int, agnostic: bool, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, ...]:
        logits = _steps(count, classes, step=1 / 4).to(dtype)
        deltas = _steps(count, 4 if agnostic else 4 * classes, step=1 / 16).to(dtype)
        ids = torch.randint(-1, 4, (count,))  # 3 images; two numbers are none
        return logits, deltas, boxes(count), ids, torch.tensor([[90.0, 80], [70, 99], [100, 60]])

    def detect(most: int, threshold: float = 0.5, least: float = 0.05) -> Callable[..., Tensor]:
        def call(*arguments: Tensor) -> Tensor:
            return _together(
                ops.postprocess_detections(
                    *arguments,
                    score_threshold=least,
                    iou_threshold=threshold,
                    detections_per_image=most,
                    min_size=3.0,
                )
            )

        return call

    options: dict = {"tolerance": 1e-4, "exact_on_device": False}
    return [
        Case("postprocess_detections", lambda: make(300, 4, False), detect(100), **options),
        Case("postprocess_detections-one", lambda: make(150, 3, True), detect(1), **options),
        # What is kept fills several rounds of gathering, but not the result.
        Case(
            "postprocess_detections-all",
            lambda: make(400, 6, False),
            detect(900, 1.0, 0.0),
            **options,
        ),
        Case(
            "postprocess_detections-float64",
            lambda: make(70, 3, True, torch.float64),
            detect(40),
            **options,
        ),
    ]


BOX_CASES = [
    *_box_iou_cases(),
    *_match_cases(),
    *_nms_cases(),
    *_merging_cases(),
    *_proposal_cases(),
    *_detection_cases(),
]
