"""The samples of a stream: for training without an end, for evaluation once and in order."""

from __future__ import annotations

import itertools
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchvision.transforms import v2

from rcnn_ext.data.dataset import collate
from rcnn_ext.data.hub.rows import Row, plain_rows, read_row, useful
from rcnn_ext.data.hub.split import HubSplit
from rcnn_ext.data.samples import RawSample, Sample, apply_transform, keep_boxes, raw_target
from rcnn_ext.data.sampling import mixed_seed
from rcnn_ext.data.transforms import mosaic
from rcnn_ext.data.workers import leave_signals_to_main
from rcnn_ext.errors import UserError

# Rows that are kept, undecoded, to take the place of broken ones and for mosaics. Where all of
# them are broken, something other than single rows is wrong.
_WINDOW = 16


class HubStream(IterableDataset[Sample]):
    """Samples of a stream: for training without an end, for evaluation once and in order.

    Rows are shared without overlap: by shards (files) where there are enough of them for all
    workers of all processes, else by processes, else row by row, where each worker reads all rows
    but decodes its own only. A training epoch shuffles the shards and then, in a buffer, the rows;
    the order depends on the seed, the epoch and the numbers of processes and workers alone.

    Args:
        split: What to read.
        augmentation: How samples are varied; None gives them once, in order and as they are.
        seed: Seed of order and augmentation.
        mosaic: Probability that an image shares its place with the three before it.
        batch_size: Samples that are taken from a worker at once.
        start: Batches of this process to pass over when an interrupted run resumes: their samples
            are read but not decoded.
        rank: Index of this process, from 0.
        processes: Number of processes.
    """

    def __init__(
        self,
        split: HubSplit,
        augmentation: v2.Transform | None = None,
        seed: int = 0,
        *,
        mosaic: float = 0.0,
        batch_size: int = 1,
        start: int = 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.split = split
        self.augmentation = augmentation
        self.seed = seed
        self.mosaic = mosaic
        self.batch_size = batch_size
        self.start = start
        self.rank = rank
        self.processes = processes

    def __iter__(self) -> Iterator[Sample]:
        """Return this worker's share of the samples.

        Raises:
            UserError: A row is broken and ``data.on_error`` is ``stop``, or very many are.
        """
        worker = get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        if self.augmentation is None:
            for _, row in self._share(self.split.rows, index, workers):
                read = self._read(row)
                if read is not None:
                    yield apply_transform(read, v2.Identity())
            return
        yield from self._training(index, workers)

    def _training(self, index: int, workers: int) -> Iterator[Sample]:
        # Batches go round the workers, so that each has passed over its part of them; and the
        # loader asks worker 0 first, which is to be the one whose turn it is.
        index = (index + self.start) % workers
        batches = self.start // workers + (index < self.start % workers)
        passed = batches * self.batch_size
        # Undecoded, so that what is passed over costs no more than reading it.
        recent: deque[Row] = deque(maxlen=_WINDOW)
        position, begun = 0, False
        for epoch in itertools.count():
            used = False
            for number, row in self._share(self.split.rows, index, workers, epoch):
                if not useful(row, self.split):
                    continue
                used = True
                recent.appendleft(row)
                if begun and position < passed:
                    position += 1
                    continue
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(mixed_seed(self.seed, epoch, 5, self.rank, index, number))
                    sample = self._from_recent(recent)
                    if sample is None:
                        # No row before this one could take its place, so it does not count.
                        continue
                    begun = True
                    position += 1
                    if position <= passed:
                        continue
                    assert self.augmentation is not None
                    result = apply_transform(sample, self.augmentation)
                yield result
            if not used:
                raise UserError(
                    f"{self.split.source} has no rows to train on for some of {self.processes} "
                    f"processes with {workers} workers each; fewer data.workers may help"
                )

    def _from_recent(self, recent: Sequence[Row]) -> RawSample | None:
        """Return the sample of the first row that is not broken.

        Every row thus gives a sample, and a resumed run finds its place without decoding.
        """
        usable = (sample for sample in map(self._learnable, recent) if sample is not None)
        sample = next(usable, None)
        if sample is None:
            if len(recent) == _WINDOW:
                raise UserError(f"{_WINDOW} rows in a row of {self.split.source} are broken")
            return None
        if self.mosaic and float(torch.rand(())) < self.mosaic:
            others = list(itertools.islice(usable, 3))
            return mosaic([sample, *others]) if len(others) == 3 else sample
        return sample

    def _share(
        self, rows: Any, index: int, workers: int, epoch: int | None = None
    ) -> Iterator[tuple[int, Row]]:
        """Yield the rows of one worker of this process, numbered; shuffled for an epoch."""
        parts, part = self.processes * workers, self.rank * workers + index
        step, first = 1, 0
        if rows.num_shards >= parts:
            rows = rows.shard(parts, part, contiguous=False)
        elif rows.num_shards >= self.processes and self.processes > 1:
            rows = rows.shard(self.processes, self.rank, contiguous=False)
            step, first = workers, index
        else:
            step, first = parts, part
        if epoch is not None:
            # Below 2^32, as NumPy's generators want it.
            seed = mixed_seed(self.seed, epoch, 4) % 2**32
            rows = rows.shuffle(seed, buffer_size=self.split.config.hf.shuffle_buffer)
        yield from itertools.islice(enumerate(plain_rows(rows)), first, None, step)

    def _read(self, row: Row) -> RawSample | None:
        try:
            image, record = read_row(row, self.split)
        except UserError as error:
            if self.split.config.on_error == "stop":
                raise
            warnings.warn(f"skipped: {error}", RuntimeWarning, stacklevel=2)
            return None
        return image, raw_target(record)

    def _learnable(self, row: Row) -> RawSample | None:
        """Return a sample without crowds, or None if its row is broken."""
        read = self._read(row)
        if read is None:
            return None
        image, target = read
        return image, keep_boxes(target, ~target["crowd"])


def stream_loader(stream: HubStream, workers: int, pin_memory: bool) -> DataLoader[Sample]:
    """Return a loader of a stream's batches, of its ``batch_size``.

    Args:
        stream: Its samples.
        workers: Processes that read; for a run to be repeated, the same number again.
        pin_memory: Whether batches are to be copied to a GPU.
    """
    return DataLoader(
        stream,
        batch_size=stream.batch_size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_main,
    )
