"""One list of classes for all splits, under names that the target format can hold."""

from __future__ import annotations

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
    changed = 0
    for one in lists:
        for name, number in zip(one.names, one.category_ids, strict=True):
            if name in ids:
                changed += ids[name] != number
            elif number in ids.values():
                changed += 1
                whole = [known for known in ids.values() if isinstance(known, int)]
                ids[name] = max(whole, default=0) + 1
            else:
                ids[name] = number
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
    names = []
    for name in classes.names:
        if name not in kept:
            plain = held(name)
            count, new = 2, plain
            while new in taken:
                count, new = count + 1, f"{plain} {count}"
            taken.add(new)
            losses.add("names of classes", f"{target} cannot hold {name!r}: it is {new!r} now")
            name = new
        names.append(name)
    return ClassList(tuple(names), classes.category_ids)
