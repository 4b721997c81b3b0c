"""What is known of the CUDA kernels' mutants: which operators run them, and which must survive."""

from __future__ import annotations

# File -> the operators whose cases run its code; where none are listed, all RoI operators.
OPERATORS = {
    "box_iou_cuda.cu": ("box_iou", "box_ios", "generalized", "distance", "complete"),
    "match_boxes_cuda.cu": ("match_boxes",),
    "nms_chunk_cuda_kernels.cuh": ("nms", "batched_nms"),
    "soft_nms_cuda.cu": ("soft_nms", "batched_soft_nms"),
    "non_max_merging_cuda.cu": ("non_max_merging",),
    "generate_proposals_cuda.cu": ("generate_proposals",),
    "postprocess_detections_cuda.cu": ("postprocess_detections",),
    "nms_score_order_cuda_kernels.cuh": ("nms", "batched_nms"),
    "nms_block_cuda_kernels.cuh": (
        "nms",
        "batched_nms",
        "generate_proposals",
        "postprocess_detections",
    ),
    "roi_pool_cuda.cu": ("roi_pool",),
}
ROI_OPERATORS = ("roi_align", "roi_pool", "multiscale_roi_align")
OPERATORS["block_primitives.cuh"] = (
    *ROI_OPERATORS,
    "nms",
    "batched_nms",
    "generate_proposals",
    "postprocess_detections",
    "soft_nms",
)

EXCHANGED = (
    "the warp meets again, in the exchange of the next bins, before anything is overwritten; that "
    "does not order memory, which emulation has in order anyway"
)

# (file, mutated text, occurrence in the file) -> why the mutant is equivalent to the original.
EXPLAINED = {
    ("quad.cuh", "i < tiles", 1): "one more round, of the last channel again, written by nobody",
    ("quad.cuh", "pass < tile.bins", 1): "one more round, without a bin",
    ("gather_weights.cuh", "r < kTileHeight", 2): "a bin more in the mask, whose weights are all 0",
    (
        "gather_weights.cuh",
        "c < Shape::kTileWidth",
        1,
    ): "the padding of a row of weights is cleared too",
    ("roi_gather.cuh", "c < kChannels", 6): "no thread has as many channels: c < place.valid",
    ("roi_gather.cuh", "base < plan.roi_count", 1): "one more round, without a RoI",
    ("roi_gather.cuh", "first < total", 1): "one more round, over no RoI",
    ("roi_gather.cuh", "ph0 < plan.pooled_height", 1): "one more round, without a bin",
    ("roi_gather.cuh", "pw0 < plan.pooled_width", 1): "one more round, without a bin",
    ("roi_align_forward_cuda_kernels.cuh", "__syncwarp();", 2): EXCHANGED,
    ("roi_pool_cuda.cu", "__syncwarp();", 2): EXCHANGED,
    (
        "roi_align_forward_cuda_kernels.cuh",
        "inside",
        2,
    ): "saves work: there is room, and nobody writes it out",
    ("roi_pool_cuda.cu", "inside", 2): "saves work: there is room, and nobody writes it out",
    ("match_boxes_cuda.cu", "first < image.box_count", 1): "one more round, of the last box again",
    ("match_boxes_cuda.cu", "first < image.box_count", 2): "one more round, of the last box again",
    ("match_boxes_cuda.cu", "tile < image.gt_count", 1): "one more round, over an empty tile",
    ("match_boxes_cuda.cu", "tile < image.gt_count", 2): "one more round, over an empty tile",
    (
        "nms_chunk_cuda_kernels.cuh",
        "first < carried_count",
        1,
    ): "one more round, over an empty tile",
    (
        "nms_chunk_cuda_kernels.cuh",
        "first < size && found < output.max_kept",
        1,
    ): "one more round, without a flag",
    ("nms_block_cuda_kernels.cuh", "column < size", 1): (
        "saves work: bits of columns beyond the word are not looked at"
    ),
    ("nms_block_cuda_kernels.cuh", "first < count && kept_count < max_kept", 1): (
        "one more round, over an empty word"
    ),
    ("nms_block_cuda_kernels.cuh", "k < kept_count", 1): (
        "one more box, in room that nobody has written: poison has no extent"
    ),
    ("block_primitives.cuh", "base < count", 1): "one more round, without a key",
    ("generate_proposals_cuda.cu", "step < steps", 2): (
        "the first anchors of the next warp once more, to the same places"
    ),
    ("postprocess_detections_cuda.cu", "base < count && found < max_detections", 1): (
        "one more round, without a candidate"
    ),
}

# (file, mutated text, occurrence) -> reason, for mutants that are not examined: they change how
# much work a kernel does and not its result, so no test of results can notice.
WORK_SAVED = {
    ("roi_gather.cuh", "task.key < range.x", 1): "a round without the tile's image",
    ("roi_gather.cuh", "task.key > range.y", 1): "a round without the tile's image",
    ("roi_footprint.cuh", "box.y < box.y_end", 1): "no tile overlaps an empty box",
    ("roi_footprint.cuh", "box.x < box.x_end", 1): "no tile overlaps an empty box",
    (
        "nms_chunk_cuda_kernels.cuh",
        "row_word > column_word",
        1,
    ): "the words of such a block are not read",
    (
        "nms_chunk_cuda_kernels.cuh",
        "!(intersection_area(box, other) > limits[0][row] + limits[1][column])",
        1,
    ): "a filter before the exact test",
    (
        "nms_chunk_cuda_kernels.cuh",
        "intersection_area(tile[k], mine) > limits[k] + my_limit",
        1,
    ): "a filter before the exact test",
    ("nms_chunk_cuda_kernels.cuh", "atomicMin(&end, first_start);", 1): (
        "each block goes on to the end, and finds what others find"
    ),
    (
        "nms_chunk_cuda_kernels.cuh",
        "total >= output.max_kept",
        1,
    ): "what comes after a full result is not stored",
    ("soft_nms_cuda.cu", "old_score < T(0)", 1): "a removed box stays removed",
    ("match_boxes_cuda.cu", "best_iou[n] < gt_best_iou", 1): "no IoU of such a box is as high",
}
