"""Ids of COCO files, which exporters write as whole numbers, texts and fractions."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import Any

import numpy as np

# Something that can be looked up: a whole number where the id is one.
Key = int | str | float

_INT64 = np.iinfo(np.int64)


def key_of(value: Any) -> Key | None:
    """Return an id as a key; None if it is none: no text, or number, or not finite."""
    kind = type(value)
    if kind is int or (kind is str and value):
        return value
    if kind is float and value == value and abs(value) != float("inf"):
        return int(value) if value.is_integer() else value
    return None


def other_spelling(key: Key) -> Key | None:
    """Return the text of a number and the number of a text; None where there is no other.

    Some exporters write ``"17"`` in one list and ``17`` in the other.
    """
    if isinstance(key, int):
        return str(key) if abs(key) < 10**18 else None
    if isinstance(key, str) and key.strip().lstrip("-").isascii() and len(key) < 19:
        digits = key.strip()
        return int(digits) if digits.lstrip("-").isdigit() and digits[1:].count("-") == 0 else None
    return None


class IdColumn:
    """The ids in one field of many entries: an array where all are whole numbers."""

    def __init__(self) -> None:
        self._chunks: list[np.ndarray | list[Key | None]] = []

    def add(self, values: list[Any]) -> None:
        """Add the ids of the next entries, None or anything else where one has none."""
        if set(map(type, values)) <= {int}:
            try:
                self._chunks.append(np.array(values, dtype=np.int64))
                return
            except OverflowError:
                pass
        self._chunks.append([key_of(value) for value in values])

    def integers(self) -> np.ndarray | None:
        """Return all ids as int64 [N]; None where one is missing or no such number."""
        arrays = [chunk for chunk in self._chunks if isinstance(chunk, np.ndarray)]
        if len(arrays) < len(self._chunks):
            return None
        return np.concatenate([np.zeros(0, dtype=np.int64), *arrays])

    def keys(self) -> list[Key | None]:
        """Return all ids, None for what is none."""
        found: list[Key | None] = []
        for chunk in self._chunks:
            found += chunk.tolist() if isinstance(chunk, np.ndarray) else chunk
        return found

    def key(self, index: int) -> Key | None:
        """Return one id."""
        for chunk in self._chunks:
            if index < len(chunk):
                return int(chunk[index]) if isinstance(chunk, np.ndarray) else chunk[index]
            index -= len(chunk)
        raise IndexError(index)

    def rows_in(self, table: dict[Key, int]) -> np.ndarray:
        """Look all ids up.

        Args:
            table: Places by id.

        Returns:
            int64 [N], the place of each id, -1 where the table does not have it.
        """
        numbers = self.integers()
        if numbers is not None and all(type(key) is int for key in table):
            return _search(numbers, table)
        found = np.full(sum(map(len, self._chunks)), -1, dtype=np.int64)
        for index, key in enumerate(self.keys()):
            if key is None:
                continue
            place = table.get(key)
            if place is None:
                other = other_spelling(key)
                place = table.get(other) if other is not None else None
            if place is not None:
                found[index] = place
        return found

    def repeated(self) -> np.ndarray:
        """Return the indices of ids that an entry before has, int64 [K] in rising order."""
        numbers = self.integers()
        if numbers is not None:
            order = np.argsort(numbers, kind="stable")
            again = np.diff(numbers[order]) == 0
            return np.sort(order[1:][again])
        seen: set[Key] = set()
        found = []
        for index, key in enumerate(self.keys()):
            if key is not None and key in seen:
                found.append(index)
            elif key is not None:
                seen.add(key)
        return np.array(found, dtype=np.int64)


def _search(numbers: np.ndarray, table: dict[Key, int]) -> np.ndarray:
    fitting = [key for key in table if _INT64.min <= int(key) <= _INT64.max]
    if not fitting:
        return np.full(len(numbers), -1, dtype=np.int64)
    known = np.array(fitting, dtype=np.int64)
    places = np.array([table[key] for key in fitting], dtype=np.int64)
    order = np.argsort(known)
    known, places = known[order], places[order]
    at = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
    return np.where(known[at] == numbers, places[at], -1)


def number_images(keys: Iterable[Key]) -> tuple[np.ndarray, list[Key | None] | None]:
    """Return whole numbers for images, which are their ids wherever these are such numbers.

    Args:
        keys: Ids of the images, all different.

    Returns:
        Numbers, int64 [M], all different; and the ids themselves where they are others, None where
        the number is the id. None in place of the list if that is so for all.
    """
    keys = list(keys)
    usable = [type(key) is int and _INT64.min <= key <= _INT64.max for key in keys]
    if all(usable):
        return np.array(keys, dtype=np.int64), None
    taken = {key for key, good in zip(keys, usable, strict=True) if good}
    free = (number for number in count(1) if number not in taken)
    numbers = [key if good else next(free) for key, good in zip(keys, usable, strict=True)]
    own = [None if good else key for key, good in zip(keys, usable, strict=True)]
    return np.array(numbers, dtype=np.int64), own
