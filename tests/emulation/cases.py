"""Calls of every operator, around the sizes at which its CUDA kernels begin a new tile.

The emulated kernels are compared on them with the references, and with a device where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rcnn_ext import ops


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        name: the id of the test.
        make: gives the arguments; those that are floating maps or boxes and want a derivative have
            ``requires_grad``.
        call: gives the results; their derivatives are compared too.
        exact: the reference gives the same bits.
        exact_on_device: a device gives the same bits as the emulator.
        tolerance: absolute and relative, where bits may differ.
    """

    name: str
    make: Callable[[], tuple[Tensor, ...]]
    call: Callable[..., Tensor]
    exact: bool = False
    exact_on_device: bool = True
    tolerance: float = field(default=2e-5)

    def run(self, device: str = "cpu", for_reference: bool = False) -> tuple[Tensor, ...]:
        """The result and the gradient of every argument that wants one, on the CPU.

        Args:
            device: to run on.
            for_reference: the implementation refuses RoIs of no image, for which the CUDA kernels
                give zeros; it gets RoIs far outside of the map instead.
        """
        # Where the random numbers are made does not matter: on the CPU, from one seed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            made = self.make()
            if for_reference and made[-1].dim() == 2 and made[-1].shape[1] == 5:
                made = (*made[:-1], _outside_instead_of_no_image(made[-1], len(made[0])))
            arguments = [
                a.detach().to(device).requires_grad_(a.requires_grad) for a in made
            ]  # leaves, in the layout they were made in
            result = self.call(*arguments)
            wanted = [a for a in arguments if a.requires_grad]
            grads: tuple[Tensor, ...] = ()
            if wanted and result.requires_grad:
                upstream = torch.randn(result.shape, dtype=torch.float64).to(result)
                grads = torch.autograd.grad(result, wanted, upstream)
        return tuple(t.detach().cpu() for t in (result, *grads))


def _outside_instead_of_no_image(rois: Tensor, images: int) -> Tensor:
    bad = (rois[:, :1] < 0) | (rois[:, :1] >= images)
    return torch.where(bad, torch.tensor([0.0, -9e3, -9e3, -8e3, -8e3]), rois)


def boxes(count: int, size: float = 100.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes ``[count, 4]`` that overlap a good deal, two in five equal to others."""
    low = torch.rand(count, 2) * size
    made = torch.cat([low, low + 1 + torch.rand(count, 2) * size / 4], dim=1).to(dtype)
    made[count * 3 // 5 :] = made[: count - count * 3 // 5].clone()
    return made


def rois(count: int, images: int, size: float = 100.0) -> Tensor:
    """RoIs ``[count, 5]``; every seventh belongs to no image, some lie outside of the map."""
    index = torch.randint(0, images, (count, 1)).float()
    index[3::7] = images
    index[5::14] = -1
    made = torch.cat([index, boxes(count, size)], dim=1)
    made[2::9, 1:] -= size / 2
    return made


def features(
    *shape: int, channels_last: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A map ``[N, C, H, W]`` that wants its gradient."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    made = torch.randn(shape).to(dtype)
    return made.contiguous(memory_format=layout).requires_grad_()


def _together(results: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([result.flatten().double() for result in results])


def _box_iou_cases() -> list[Case]:
    measures = {
        "box_iou": ops.box_iou,
        "generalized_box_iou": ops.generalized_box_iou,
        "distance_box_iou": ops.distance_box_iou,
        "complete_box_iou": ops.complete_box_iou,
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


def _roi_cases() -> list[Case]:
    made = []

    def add(name: str, call: Callable, make: Callable[[bool], tuple[Tensor, ...]], **options):
        for layout in ("contiguous", "channels_last"):
            last = layout == "channels_last"
            exact = call is pool and options.get("tolerance", 0) == 0
            made.append(
                Case(f"{name}-{layout}", lambda last=last: make(last), call, exact=exact, **options)
            )

    def align(x: Tensor, r: Tensor) -> Tensor:
        return ops.roi_align(x, r, (3, 2), 0.25, 2, aligned=True)

    def align_adaptive(x: Tensor, r: Tensor) -> Tensor:
        return ops.roi_align(x, r, (2, 3), 0.25, -1, aligned=False)

    def align_many_bins(x: Tensor, r: Tensor) -> Tensor:
        return ops.roi_align(x, r, (17, 18), 0.25, 1, aligned=True)

    def pool(x: Tensor, r: Tensor) -> Tensor:
        return ops.roi_pool(x, r, (3, 2), 0.25)

    def pool_many_bins(x: Tensor, r: Tensor) -> Tensor:
        return ops.roi_pool(x, r, (17, 18), 0.25)

    def small(last: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        # The map ends inside a tile, and the channels inside a block of 8.
        return features(2, 11, 11, 37, channels_last=last, dtype=dtype), rois(23, 2, 140)

    def few(last: bool) -> tuple[Tensor, ...]:
        return features(2, 3, 9, 10, channels_last=last), rois(3, 2, 40)

    def many_rois(last: bool) -> tuple[Tensor, ...]:
        return features(2, 2, 9, 33, channels_last=last), rois(300, 2, 130)

    def apart(last: bool) -> tuple[Tensor, ...]:
        # Tiles that none of the first 256 RoIs reaches, and tiles that no other reaches.
        made = rois(300, 1, 60)
        made[:256, 1::2] += 200
        return features(1, 2, 9, 70, channels_last=last), made

    def full_round(last: bool) -> tuple[Tensor, ...]:
        # As many RoIs as a block looks at together.
        return features(1, 2, 9, 9, channels_last=last), rois(256, 1, 40)

    def many_channels(last: bool) -> tuple[Tensor, ...]:
        return features(1, 260, 3, 5, channels_last=last), rois(3, 1, 20)

    def vectors(last: bool, dtype: torch.dtype) -> tuple[Tensor, ...]:
        # Channels fill loads of 16 bytes, and more than a warp of them.
        return features(2, 272, 5, 6, channels_last=last, dtype=dtype), rois(4, 2, 30)

    def unaligned(last: bool) -> tuple[Tensor, ...]:
        # The channels would fill loads of 16 bytes, but the map begins one element too late.
        x = features(2, 8, 9, 10, channels_last=last).detach()
        memory = torch.empty(x.numel() + 1)[1:]
        x = memory.as_strided(x.shape, x.stride()).copy_(x)
        return x.requires_grad_(), rois(9, 2, 40)

    def wide(last: bool) -> tuple[Tensor, ...]:
        # More taps than a table has room for; the second RoI has few.
        made = torch.tensor([[1, -3.0, 0.2, 2600, 8.3], [0, 5, 1, 70, 9]])
        return features(2, 3, 3, 650, channels_last=last), made

    def align_wide(x: Tensor, r: Tensor) -> Tensor:
        return ops.roi_align(x, r, (2, 1), 0.25, -1, aligned=True)

    def pyramid(x: Tensor, r: Tensor) -> Tensor:
        # Levels of three sizes, of the one map so that all of them show in its gradient.
        maps = [x, x[..., :7, :20], x[..., 2:5, 1:9]]
        return ops.multiscale_roi_align(
            maps, r, (3, 2), [1 / 4, 1 / 8, 1 / 16], 2, True, canonical_scale=50.0
        )

    for name, call in (("roi_align", align), ("roi_pool", pool), ("multiscale_roi_align", pyramid)):
        add(name, call, small)
        add(f"{name}-many-rois", call, many_rois)
        add(f"{name}-apart", call, apart)
        add(f"{name}-many-channels", call, many_channels)
        for dtype, tolerance in ((torch.float16, 4e-3), (torch.bfloat16, 3e-2)):
            add(f"{name}-{dtype}", call, lambda last, d=dtype: small(last, d), tolerance=tolerance)
        add(f"{name}-float64", call, lambda last: small(last, torch.float64))
        add(f"{name}-unaligned", call, unaligned)
        for dtype, tolerance in ((torch.float32, 2e-5), (torch.float16, 4e-3)):
            exact: dict = {"tolerance": tolerance} if call is not pool or dtype.itemsize < 4 else {}
            add(f"{name}-vectors-{dtype}", call, lambda last, d=dtype: vectors(last, d), **exact)
    add("roi_align-adaptive", align_adaptive, small)
    add("roi_align-full-round", align, full_round)
    add("roi_align-wide", align_wide, wide, tolerance=1e-4)
    add("roi_align-many-bins", align_many_bins, few)
    add("roi_pool-many-bins", pool_many_bins, few, tolerance=2e-5)
    return made


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


CASES = [
    *_box_iou_cases(),
    *_match_cases(),
    *_nms_cases(),
    *_proposal_cases(),
    *_detection_cases(),
    *_roi_cases(),
]
