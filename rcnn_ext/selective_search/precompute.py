"""Compute the proposals of a data set with all cores, and resume an earlier run that stopped."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rcnn_ext.data.images import ImageReader
from rcnn_ext.errors import UserError
from rcnn_ext.progress import Progress
from rcnn_ext.selective_search.cache import CachedRegions, ProposalCache
from rcnn_ext.selective_search.search import find_regions

if TYPE_CHECKING:
    # It needs torch, which the processes that search do without.
    from rcnn_ext.distributed import Processes

# Searches in flight for each worker: enough that none waits, few enough that a stop is quick.
_QUEUED_PER_WORKER = 2


@dataclasses.dataclass
class Summary:
    """Counts of the images searched, present and broken.

    Attributes:
        computed: Searched now.
        present: There before.
        regions: Found in the images that were searched now.
        broken: The images that could not be read, or their regions not be written, and why.
    """

    computed: int = 0
    present: int = 0
    regions: int = 0
    broken: list[str] = dataclasses.field(default_factory=list)


def precompute(
    images: list[Path],
    cache: ProposalCache,
    workers: int | None = None,
    *,
    processes: Processes | None = None,
    reader: ImageReader | None = None,
) -> Summary:
    """Search every image that has no proposals in the cache.

    The native search runs in threads, since it does not hold the GIL; others run in processes,
    where one that crashes takes nothing else with it.

    Args:
        images: Image files; each of N processes takes every N-th of them.
        cache: Where to keep what is found.
        workers: Searches at a time; None for one per core of this process's share.
        processes: The processes that share the images; None means this one alone.
        reader: Reads the images; None reads them with the usual options.

    Returns:
        What was done. An image that cannot be read, and regions that cannot be written, are named
        there and do not stop the others.

    Raises:
        UserError: The backend is not installed.
    """
    rank, count, local_count = 0, 1, 1
    if processes is not None:
        rank, count, local_count = processes.rank, processes.count, processes.local_count
    share = images[rank::count]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = workers or max(1, (cores or 1) // local_count)
    name = "Proposals" if count == 1 else f"Proposals, rank {rank}"
    summary = Summary()
    with _executor(cache, workers) as executor, Progress(name, len(share), "image") as progress:
        for image, outcome in _in_flight(
            executor, share, cache, reader, _QUEUED_PER_WORKER * workers
        ):
            if isinstance(outcome, UserError):
                summary.broken.append(str(outcome))
                progress.message(f"left out: {outcome}")
            elif outcome is None:
                summary.present += 1
            else:
                summary.computed += 1
                summary.regions += outcome
            progress.advance(note=image.name)
    return summary


def compute_one(
    image: Path, cache: ProposalCache, reader: ImageReader | None = None
) -> int | UserError | None:
    """Search one image unless its proposals are there.

    Returns:
        The number of regions; None where they were there; an error where the image is broken or
        the regions cannot be written.
    """
    try:
        content = image.read_bytes()
        if cache.has(content):
            return None
        picture = (reader or ImageReader()).load_image(image)
    except (OSError, UserError) as error:
        return error if isinstance(error, UserError) else UserError(f"{image}: {error.strerror}")
    regions = find_regions(picture, cache.settings)
    try:
        cache.write(content, CachedRegions(regions, picture.height, picture.width))
    except UserError as error:  # such as a full disk
        return UserError(f"{image}: {error}")
    return len(regions)


@contextlib.contextmanager
def _executor(cache: ProposalCache, workers: int) -> Iterator[concurrent.futures.Executor]:
    executor: concurrent.futures.Executor
    if cache.settings.backend == "native":
        executor = concurrent.futures.ThreadPoolExecutor(workers)
    else:
        # A fork of a process with threads may hold a lock for good.
        context = multiprocessing.get_context("spawn")
        executor = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield executor
    finally:
        # After Ctrl-C: what has begun ends, so that its file is whole; nothing else begins.
        executor.shutdown(wait=True, cancel_futures=True)


def _in_flight(
    executor: concurrent.futures.Executor,
    images: Iterable[Path],
    cache: ProposalCache,
    reader: ImageReader | None,
    max_pending: int,
) -> Iterator[tuple[Path, int | UserError | None]]:
    """Search images, at most ``max_pending`` at a time, and yield each when it is done."""
    waiting: dict[concurrent.futures.Future[int | UserError | None], Path] = {}
    for image in images:
        if len(waiting) >= max_pending:
            yield from _take_done(waiting)
        waiting[executor.submit(compute_one, image, cache, reader)] = image
    while waiting:
        yield from _take_done(waiting)


def _take_done(
    waiting: dict[concurrent.futures.Future[int | UserError | None], Path],
) -> Iterator[tuple[Path, int | UserError | None]]:
    done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
    for future in done:
        image = waiting.pop(future)
        try:
            yield image, future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise UserError(
                f"the search ended its process, at {image} or another image at that time; "
                "backend 'native' does not"
            ) from None
