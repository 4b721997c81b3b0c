"""One list of classes for all splits, under names that the target format can hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from rcnn_ext.data.annotations import ClassList
from rcnn_ext.data.conversion.losses import Losses


def merge_classes(lists: Sequence[ClassList], losses: Losses) -> ClassList:
    """Return all classes of the splits, with one id each.

    Formats without a list of classes number those that occur, split by split; these numbers mean
    nothing and are made again for all. Ids that a format does have are kept; where splits disagree,
    the first one counts.

    Args:
        lists: The classes of each split, those of training first.
        losses: Where ids that are not kept are counted.
    """
    names = list(dict.fromkeys(name for one in lists for name in one.names))
    if all(is_numbered(one) for one in lists):
        ordered = tuple(sorted(names))
        return ClassList(ordered, tuple(range(1, len(ordered) + 1)))
    ids: dict[str, int | str | float] = {}
    taken: set[int | str | float] = set()
    whole = [number for one in lists for number in one.category_ids if isinstance(number, int)]
    spare = itertools.count(max(whole, default=0) + 1)
    changed = 0
    for one in lists:
        for name, number in zip(one.names, one.category_ids, strict=True):
            if name in ids:
                changed += ids[name] != number
            elif number in taken:
                changed += 1
                ids[name] = next(spare)
            else:
                ids[name] = number
                taken.add(number)
    losses.add("category ids", "splits gave a class several, or several classes one", changed)
    return ClassList(tuple(ids), tuple(ids.values()))


def is_numbered(classes: ClassList) -> bool:
    """Return whether the ids only count the names in their sorted order, from 1."""
    count = len(classes)
    return classes.category_ids == tuple(range(1, count + 1)) and list(classes.names) == sorted(
        classes.names
    )


def rename_classes(
    classes: ClassList, held: Callable[[str], str], target: str, losses: Losses
) -> ClassList:
    """Return the classes under names that a format holds, all different.

    Args:
        classes: The classes.
        held: Returns a name as the format holds it.
        target: The format, for messages.
        losses: Where names that are not kept are counted.
    """
    kept = {name for name in classes.names if held(name) == name}
    taken = set(kept)
    names: list[str] = []
    changed: list[tuple[str, str]] = []
    for name in classes.names:
        if name not in kept:
            plain = held(name)
            count, new = 2, plain
            while new in taken:
                count, new = count + 1, f"{plain} {count}"
            taken.add(new)
            changed.append((name, new))
            name = new
        names.append(name)
    if changed:
        old, new = changed[0]
        why = f"{target} cannot hold {old!r:.80}: it is {new!r:.80} now"
        losses.add("names of classes", why, len(changed))
    return ClassList(tuple(names), classes.category_ids)
