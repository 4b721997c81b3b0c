"""Parts of different lengths, one behind the other in one array."""

from __future__ import annotations

import numpy as np


def starts_of(counts: np.ndarray) -> np.ndarray:
    """Return where each part begins.

    Args:
        counts: Length of each part, [N].

    Returns:
        int64 [N + 1]; the last is where all of them end.
    """
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])


def gather_parts(starts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the starts of some of many parts, and the places of all that is in them.

    Args:
        starts: What :func:`starts_of` gives for all parts, [N + 1].
        rows: Indices of the wanted parts, [K].

    Returns:
        The starts of the wanted parts, int64 [K + 1], and the index in the array of each of their
        elements, int64.
    """
    counts = np.diff(starts)[rows]
    fresh = starts_of(counts)
    places = np.arange(fresh[-1]) + np.repeat(starts[rows] - fresh[:-1], counts)
    return fresh, places
