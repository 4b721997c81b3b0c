"""Open a split of a data set of the Hub: its rows, its columns and its classes."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcnn_ext.config.data import DataConfig, HubConfig
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.errors import UserError
from rcnn_ext.progress import tracked

# Further names of a split, looked for where a data set does not have the usual one.
_OTHER_NAMES = {"validation": ("val", "valid")}

# Names of columns that data sets have in place of the usual ones.
_USUAL_NAMES = {
    "box": ("bboxes", "boxes", "box"),
    "label": ("categories", "label", "labels", "class", "classes", "category_id", "name"),
}

# A class with a larger number is none; the numbers are not those of classes.
_MAX_NUMBER = 100_000

# Keys that only files have, or that need all images before the first step.
_FILES_ONLY = (
    *(
        f"{split}_{part}"
        for split in ("train", "val", "test")
        for part in ("annotations", "images")
    ),
    *("val_fraction", "test_fraction", "max_train_images", "objects", "measure_mean_std"),
    "repeat_threshold",
)


@dataclass(frozen=True, eq=False)
class HubSplit:
    """A split of a data set of the Hub, which is read as it is needed.

    Attributes:
        source: The name of the data set, or its folder, for messages.
        name: Name of the split in the data set.
        rows: The ``datasets.IterableDataset``; its pictures are not decoded.
        classes: The classes of the labels.
        config: How it is read.
        class_names: The classes as the data number them; None where rows name them.
        images: Number of its images, where the recipe or the data say it; else None.
    """

    source: Path
    name: str
    rows: Any
    classes: ClassList
    config: DataConfig
    class_names: tuple[str, ...] | None
    images: int | None

    def tracked(self, what: str, max_images: int | None = None) -> Callable[[Iterable[Any]], Any]:
        """Return an iteration over rows that shows progress where their number is known."""
        counts = [count for count in (self.images, max_images) if count is not None]
        if not counts:
            return lambda rows: rows
        return lambda rows: tracked(rows, what, min(counts))

    def summary(self) -> str:
        """Return one line about what is known without reading the stream."""
        images = "" if self.images is None else f"{self.images} images, "
        return f"a stream of {self.rows.num_shards} shards, {images}{len(self.classes)} classes"


def open_stream(
    config: DataConfig, root: Path | str, split: str, classes: Sequence[str] | None = None
) -> HubSplit:
    """Open a split for streaming.

    Args:
        config: The data section of a recipe, with ``format: hf``.
        root: The data folder, or ``owner/name`` of the Hub; what is read where ``config.hf.path``
            is null.
        split: ``train``, ``val`` or ``test``.
        classes: Names of the classes; None takes those of ``config``, else all of the data.

    Raises:
        UserError: There is no such data set, split or column, the extra ``hf`` is missing, or
            ``config`` asks for what a stream cannot do.
    """
    datasets = _library()
    _check_streamable(config)
    hub = config.hf
    source = _source(hub, root)
    name = _names(hub)[split]
    if name in _OTHER_NAMES:
        known = _known_splits(datasets, hub, source)
        name = next((other for other in (name, *_OTHER_NAMES[name]) if other in known), name)
    try:
        rows: Any = datasets.load_dataset(
            source, hub.name, split=name, revision=hub.revision, streaming=hub.streaming
        )
    except Exception as error:  # Network, names and formats each have exceptions of their own.
        raise _cannot_open(f"the {name} split of {source}", error) from error
    images = None if hub.streaming else len(rows)
    if not hub.streaming:
        rows = rows.to_iterable_dataset(num_shards=min(64, len(rows)))
    elif rows.info.splits and name in rows.info.splits:
        images = rows.info.splits[name].num_examples
    if split == "train" and hub.train_images is not None:
        images = hub.train_images
    config = _with_usual_names(rows, config)
    hub = config.hf
    columns, class_names = _columns(rows, config, source)
    wanted = config.classes if classes is None else classes
    if class_names is None and Path(source).is_dir():
        class_names, occurring = _classes_of_rows(rows, hub)
        wanted = occurring if wanted is None else wanted
    if hub.image in columns:
        rows = rows.cast_column(hub.image, datasets.Image(decode=False))
    if class_names is None and wanted is None:
        raise UserError(f"{source} does not name its classes; data.classes must")
    if class_names is not None and wanted is not None:
        unknown = [name for name in wanted if name not in class_names]
        # A detector may know classes that this split does not have, but not only such.
        if unknown and (classes is None or len(unknown) == len(wanted)):
            raise UserError(
                f"{source} has no class {unknown[0]!r}; it has {', '.join(class_names)}"
            )
    numbered = _numbered(tuple(wanted if wanted is not None else class_names or ()), class_names)
    return HubSplit(Path(source), name, rows, numbered, config, class_names, images)


def stream_splits(config: DataConfig, root: Path | str) -> tuple[str, ...]:
    """Return which of ``train``, ``val`` and ``test`` a data set has.

    Raises:
        UserError: There is no such data set, or the extra ``hf`` is missing.
    """
    known = _known_splits(_library(), config.hf, _source(config.hf, root))
    return tuple(
        split
        for split, name in _names(config.hf).items()
        if any(other in known for other in (name, *_OTHER_NAMES.get(name, ())))
    )


def _library() -> Any:
    try:
        import datasets
    except ModuleNotFoundError:
        raise UserError("data.format=hf needs datasets: pip install 'rcnn-ext[hf]'") from None
    return datasets


def _names(hub: HubConfig) -> dict[str, str]:
    """Return the data set's names of the splits."""
    return {"train": hub.train_split, "val": hub.val_split, "test": hub.test_split}


def _known_splits(datasets: Any, hub: HubConfig, source: str) -> list[str]:
    try:
        return list(datasets.get_dataset_split_names(source, hub.name, revision=hub.revision))
    except Exception as error:
        raise _cannot_open(source, error) from error


def _cannot_open(what: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"cannot open {what}: {reason}")


def _source(hub: HubConfig, root: Path | str) -> str:
    """Return the folder as an absolute path, or the name on the Hub."""
    source = hub.path or str(root)
    if Path(source).is_dir():
        return str(Path(source).absolute())
    if hub.path is None and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(
            f"the data folder {source} does not exist, and it is no name of the Hub (owner/name)"
        )
    return source


def _check_streamable(config: DataConfig) -> None:
    if config.augment.copy_paste:
        raise UserError(
            "data.augment.copy_paste needs masks of objects, and a stream (data.format=hf) has none"
        )
    usual = DataConfig()
    for key in _FILES_ONLY:
        value = getattr(config, key)
        if value != getattr(usual, key):
            raise UserError(f"data.{key}={value} means nothing for a stream (data.format=hf)")


def _numbered(names: tuple[str, ...], class_names: tuple[str, ...] | None) -> ClassList:
    """Return the classes with the numbers of the data, and higher ones for others."""
    known = {name: index for index, name in enumerate(class_names or ())}
    spare = itertools.count(len(known))
    return ClassList(names, tuple(known[n] if n in known else next(spare) for n in names))


def _in_list(feature: Any) -> Any:
    """Return the items' feature of a list in any of its notations; other features as they are."""
    feature = getattr(feature, "feature", feature)
    return feature[0] if isinstance(feature, list) else feature


def _with_usual_names(rows: Any, config: DataConfig) -> DataConfig:
    """Return the data section with the names of boxes and classes that the data have.

    What the recipe names itself stays, so that a wrong name is an error.
    """
    features, hub, usual = rows.features or {}, config.hf, HubConfig()
    if hub.objects not in features:
        return config
    objects = _in_list(features[hub.objects])
    found: dict[str, Any] = {
        key: next(name for name in names if name in objects)
        for key, names in _USUAL_NAMES.items()
        if getattr(hub, key) == getattr(usual, key)
        and getattr(hub, key) not in objects
        and any(name in objects for name in names)
    }
    return dataclasses.replace(config, hf=dataclasses.replace(hub, **found))


def _classes_of_rows(
    rows: Any, hub: HubConfig
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Return the classes that a local data set numbers, and those that occur, by reading it.

    Numbers without names are their own names, from 0 to the largest.
    """
    found: set[Any] = set()
    for row in rows.select_columns([hub.objects]):
        value = row[hub.objects] or {}
        items = value if isinstance(value, list) else [value]
        for item in items:
            labels = item.get(hub.label)
            found.update(labels if isinstance(labels, list) else [labels])
    found.discard(None)
    if all(isinstance(label, int) and 0 <= label <= _MAX_NUMBER for label in found) and found:
        names = tuple(str(number) for number in range(max(found) + 1))
        return names, names
    if all(isinstance(label, str) for label in found) and found:
        return None, tuple(sorted(found))
    return None, None


def _columns(
    rows: Any, config: DataConfig, source: str
) -> tuple[list[str], tuple[str, ...] | None]:
    """Return the columns, and the names of the classes where the data have them."""
    features, hub = rows.features, config.hf
    if features is None:
        raise UserError(f"{source} does not say what its columns are")
    for column in (hub.image, hub.objects):
        if column not in features:
            raise UserError(
                f"{source} has no column {column!r} (data.hf.image, data.hf.objects); it has "
                f"{', '.join(features)}"
            )
    # A list of objects, an object of lists, or the older Sequence of an object.
    objects = _in_list(features[hub.objects])
    for key in (hub.box, hub.label):
        if key not in objects:
            raise UserError(
                f"{source}: {hub.objects} has no {key!r} (data.hf.box, data.hf.label); it has "
                f"{', '.join(objects)}"
            )
    names = getattr(_in_list(objects[hub.label]), "names", None)
    return list(features), None if names is None else tuple(names)
