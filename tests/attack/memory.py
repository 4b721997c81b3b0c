"""Calls that need more memory than there is: a clean error, and a right result once it suffices."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from rcnn_ext import ops

# From here on, in steps, until the call succeeds.
_FIRST, _FACTOR, _STEPS = 1 << 20, 2.0, 16


def _large_calls() -> dict[str, Callable[[], Any]]:
    torch.manual_seed(0)
    corners = torch.rand(60_000, 2) * 4000
    boxes = torch.cat([corners, corners + 10 + torch.rand(60_000, 2) * 60], dim=1)
    scores = torch.rand(60_000)
    features = torch.randn(1, 64, 100, 100)
    rois = torch.cat([torch.zeros(400, 1), boxes[:400] / 40], dim=1)
    few = boxes[:3000]
    return {
        "nms": lambda: ops.nms(boxes, scores, 0.5),
        "batched_nms": lambda: ops.batched_nms(boxes, scores, (scores * 9).long(), 0.5),
        "soft_nms": lambda: ops.soft_nms(few, scores[:3000]),
        "box_iou": lambda: ops.box_iou(few, few),
        "match_boxes": lambda: ops.match_boxes(few[:50], boxes, 0.7, 0.3, True),
        "roi_align": lambda: ops.roi_align(features, rois, 14, 1.0, 2),
        "roi_pool": lambda: ops.roi_pool(features, rois, 14),
        "non_max_merging": lambda: ops.non_max_merging(few, scores[:3000]),
    }


def attack(seconds: float) -> tuple[int, list[str]]:
    """Call operators in processes with less and less of a limit on memory.

    Returns:
        The number of calls, and those that ended otherwise than with a result or ``MemoryError``.
    """
    calls = _large_calls()
    for call in calls.values():
        call()
    count, faults = 0, []
    end = time.monotonic() + seconds
    for name, call in calls.items():
        allowed: float = _FIRST
        for _ in range(_STEPS):
            if time.monotonic() > end:
                return count, faults
            count += 1
            code, text = _limited(call, int(allowed))
            if code not in (0, 3):
                faults.append(f"{name} with {int(allowed):,} bytes more: exit code {code}: {text}")
            if code == 0:
                break
            allowed *= _FACTOR
        else:
            faults.append(f"{name} fails with {int(allowed):,} bytes more, too")
    return count, faults


def _limited(call: Callable[[], Any], allowed: int) -> tuple[int, str]:
    """Return the exit code of a process that makes a call: 3 for a clean error of memory."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            torch.set_num_threads(1)
            with open("/proc/self/statm", encoding="ascii") as file:
                used = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + allowed, used + allowed))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            try:
                call()
                code = 0
            except MemoryError as error:
                text = str(error)
                clear = "memory" in text and "originally from" not in text
                os.write(writer, text[:500].encode())
                code = 3 if clear else 4
            except BaseException as error:  # noqa: BLE001
                os.write(writer, f"{type(error).__name__}: {error}"[:500].encode())
                code = 5
            sys.stdout.flush()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), text
