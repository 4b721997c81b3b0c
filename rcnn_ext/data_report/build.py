"""The HTML page of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rcnn_ext.config.recipe import Recipe
from rcnn_ext.data.annotations import AnnotationSet
from rcnn_ext.data.problems import Problem
from rcnn_ext.data_report.duplicates import Duplicate
from rcnn_ext.data_report.fingerprints import Fingerprints
from rcnn_ext.data_report.measures import SplitMeasures, measure
from rcnn_ext.data_report.samples import as_url, draw_samples, thumbnail
from rcnn_ext.data_report.suggestions import Suggestions, levels_of, suggest
from rcnn_ext.data_report.suspicious import Suspicion, find_suspicious
from rcnn_ext.errors import UserError
from rcnn_ext.files import replacing

NUM_PICTURES = 24
_NUM_PAIRS = 12

# Lines of a table; a page with more is slow on a phone.
_MAX_ROWS = 200
_MAX_PROBLEMS = 5000


@dataclass(frozen=True, eq=False)
class ReportedSplit:
    """A split that was checked.

    Attributes:
        name: ``train``, ``val`` or ``test``.
        annotations: Its images; None where it cannot be read.
        problems: What was found.
        fingerprints: Those of its pictures.
        kept: Thumbnails of pictures that are no files, JPEG by path; else None.
    """

    name: str
    annotations: AnnotationSet | None
    problems: Sequence[Problem]
    fingerprints: Fingerprints = field(default_factory=Fingerprints)
    kept: dict[Path, bytes] | None = None


def suggest_for(
    splits: Sequence[tuple[str, AnnotationSet | None]],
    recipe_name: str | None = None,
    recipe: Recipe | None = None,
    *,
    stream: bool = False,
) -> Suggestions | None:
    """Return settings that suit the training split; None where there is none with objects.

    Args:
        splits: Names and images of all splits.
        recipe_name: The recipe that is to be changed, or None.
        recipe: That recipe, read, or None.
        stream: Whether the images are streamed.

    Raises:
        UserError: The model section of the recipe contradicts itself.
    """
    usable = {name: one for name, one in splits if one is not None and one.annotated}
    if "train" not in usable:
        return None
    return suggest(
        usable["train"],
        recipe_name=recipe_name,
        recipe=recipe,
        default_sizes=None if recipe is None else levels_of(recipe),
        has_validation="val" in usable,
        stream=stream,
    )


def render_report(
    path: Path,
    root: Path | str,
    format_name: str,
    splits: Sequence[ReportedSplit],
    duplicates: Sequence[Duplicate],
    suggestions: Suggestions | None,
    data_overrides: Sequence[str] = (),
) -> None:
    """Write the page, which needs no other file and runs no script.

    Args:
        path: The HTML file.
        root: The data folder.
        format_name: Its format.
        splits: What was checked.
        duplicates: What :func:`find_duplicates` returned for those splits that can be read.
        suggestions: Settings for training, or None.
        data_overrides: How the data are read, for the command that trains.

    Raises:
        ModuleNotFoundError: jinja2 is not installed.
        UserError: The file cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    base = Path(root)
    used = [one for one in splits if one.annotations is not None]
    measured = {one.name: measure(one.name, one.annotations) for one in used if one.annotations}
    severities = Counter(problem.severity for one in splits for problem in one.problems)
    text = environment.get_template("page.html").render(
        title=str(root),
        format=format_name,
        zip=zip,
        errors=severities["error"],
        warnings=severities["warning"],
        splits=[_split_row(one, measured.get(one.name)) for one in splits],
        names=[one.name for one in used],
        suggestions=suggestions,
        command="" if suggestions is None else suggestions.command(root, data_overrides),
        pictures=_pictures(used),
        classes=_classes(used, measured),
        duplicates=_duplicates(used, duplicates, base),
        suspicions=[row for one in used for row in _suspicions(one, base)],
        empty=[row for one in used for row in _empty(one, base)],
        problems=[
            {
                "split": one.name,
                "count": len(one.problems),
                "shown": _worst_first(one.problems)[:_MAX_PROBLEMS],
                "more": max(0, len(one.problems) - _MAX_PROBLEMS),
            }
            for one in splits
            if one.problems
        ],
    )
    with replacing(path) as temporary:
        # Names of files may hold bytes that are no text.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def shared_between(
    names: Sequence[str], duplicates: Sequence[Duplicate]
) -> list[tuple[str, str, list[Duplicate]]]:
    """Return the duplicates of each pair of splits: name, name of the earlier one, duplicates."""
    groups: dict[tuple[int, int], list[Duplicate]] = {}
    for one in duplicates:
        groups.setdefault((one.split, one.other_split), []).append(one)
    return [(names[a], names[b], found) for (a, b), found in sorted(groups.items())]


def kinds_in(duplicates: Sequence[Duplicate]) -> str:
    """Return how many duplicates there are of each kind, in words."""
    counts = Counter(one.kind for one in duplicates)
    words = {"copy": "copies", "near": "nearly the same", "mirrored": "mirrored"}
    return ", ".join(f"{counts[kind]} {word}" for kind, word in words.items() if counts[kind])


def _split_row(split: ReportedSplit, measures: SplitMeasures | None) -> dict[str, Any]:
    found = split.annotations
    corrected = []
    if found is not None and found.clipped:
        corrected.append(f"{found.clipped} boxes that reached out of their picture were cut")
    if found is not None and found.dropped:
        corrected.append(f"{found.dropped} boxes outside of it or without area were left out")
    return {
        "name": split.name,
        "measures": measures,
        "annotated": found is not None and found.annotated,
        "corrected": ", ".join(corrected),
    }


def _worst_first(problems: Sequence[Problem]) -> list[Problem]:
    rank = {"error": 0, "warning": 1, "note": 2}
    return sorted(problems, key=lambda problem: rank[problem.severity])


def _pictures(splits: Sequence[ReportedSplit]) -> list[dict[str, str]]:
    """Draw pictures: two thirds of training, the rest of the others."""
    counts = [NUM_PICTURES // len(splits)] * len(splits) if splits else []
    if len(splits) > 1 and splits[0].name == "train":
        rest = NUM_PICTURES // 3
        counts = [NUM_PICTURES - rest] + [rest // (len(splits) - 1)] * (len(splits) - 1)
    drawn: list[list[tuple[str, str]]] = []
    for split in splits:
        assert split.annotations is not None
        drawn.append(draw_samples(split.annotations, NUM_PICTURES, split.kept))
    # Where a split has too few, the others show more.
    for index, count in enumerate(counts):
        spare = count - len(drawn[index])
        for other in range(len(counts)):
            more = max(0, min(spare, len(drawn[other]) - counts[other]))
            counts[other] += more
            spare -= more
    return [
        {"split": split.name, "url": url, "name": name}
        for split, pictures, count in zip(splits, drawn, counts, strict=True)
        for url, name in pictures[:count]
    ]


def _classes(
    splits: Sequence[ReportedSplit], measured: dict[str, SplitMeasures]
) -> list[dict[str, Any]]:
    names: dict[str, None] = {}
    tables: list[dict[str, tuple[int, int]]] = []
    for split in splits:
        assert split.annotations is not None
        own, numbers = split.annotations.classes.names, measured[split.name]
        names |= dict.fromkeys(own)
        objects, images = numbers.objects_of_class.tolist(), numbers.images_of_class.tolist()
        tables.append(dict(zip(own, zip(objects, images, strict=True), strict=True)))
    totals = {name: sum(table.get(name, (0, 0))[0] for table in tables) for name in names}
    most = max([1, *totals.values()])
    return [
        {
            "name": name,
            "counts": [table.get(name, (0, 0)) for table in tables],
            "part": totals[name] / most,
        }
        for name in sorted(names, key=lambda name: -totals[name])
    ]


def _duplicates(
    splits: Sequence[ReportedSplit], duplicates: Sequence[Duplicate], base: Path
) -> dict[str, Any]:
    names = [one.name for one in splits]
    summary = []
    for name, other, found in shared_between(names, duplicates):
        annotations = splits[found[0].split].annotations
        assert annotations is not None
        where = f"other pictures of {name}" if name == other else f"pictures of {other}"
        text = f"{len(found)} of {len(annotations)} pictures of {name} show the same as {where}"
        summary.append({"leak": name != other, "text": f"{text}: {kinds_in(found)}."})
    # Between splits first, and of these what eyes may judge.
    kinds = ("near", "mirrored", "copy")
    ordered = sorted(
        duplicates, key=lambda one: (one.split == one.other_split, kinds.index(one.kind))
    )
    rows: list[dict[str, str]] = []
    pictures: list[dict[str, str]] = []
    for one in ordered[:_MAX_ROWS]:
        records, urls = [], []
        for index, row in ((one.split, one.row), (one.other_split, one.other_row)):
            split = splits[index]
            assert split.annotations is not None
            record = split.annotations.images[row]
            records.append(_shown(record.path, base))
            if len(pictures) < _NUM_PAIRS and split.kept is None:
                try:
                    urls.append(as_url(thumbnail(record, split.annotations)))
                except UserError:
                    continue
        kind = {"copy": "copy", "near": "nearly the same", "mirrored": "mirrored"}[one.kind]
        rows.append(
            {
                "kind": kind,
                "split": names[one.split],
                "path": records[0],
                "other_split": names[one.other_split],
                "other_path": records[1],
            }
        )
        if len(urls) == 2:
            text = f"{names[one.split]}, {names[one.other_split]}: {kind}"
            pictures.append({"first": urls[0], "second": urls[1], "text": text})
    return {
        "summary": summary,
        "compared": sum(len(one.fingerprints.by_path) for one in splits),
        "rows": rows,
        "more": max(0, len(duplicates) - _MAX_ROWS),
        "pictures": pictures,
    }


def _suspicions(split: ReportedSplit, base: Path) -> list[dict[str, Any]]:
    assert split.annotations is not None
    image_of = split.annotations.images.object_images()
    return [
        {
            "split": split.name,
            "kind": one.kind,
            "meaning": one.meaning,
            "count": len(one.objects),
            "boxes": _boxes(one, split.annotations, image_of, base),
            "more": max(0, len(one.objects) - _MAX_ROWS),
        }
        for one in find_suspicious(split.annotations.images)
    ]


def _boxes(
    one: Suspicion, annotations: AnnotationSet, image_of: np.ndarray, base: Path
) -> list[dict[str, str]]:
    images, names = annotations.images, annotations.classes
    rows = []
    for place, index in enumerate(one.objects[:_MAX_ROWS].tolist()):
        record = images[int(image_of[index])]
        partner = ""
        if one.kind == "two classes" and one.partners is not None:
            partner = names.name(int(images.labels[one.partners[place]]))
        where = ""
        if record.origin is not None:
            file, line = record.origin
            where = _shown(file, base) + ("" if line is None else f":{line}")
        rows.append(
            {
                "path": _shown(record.path, base),
                "name": names.name(int(images.labels[index])),
                "partner": partner,
                "corners": ", ".join(f"{value:.6g}" for value in images.boxes[index].tolist()),
                "where": where,
            }
        )
    return rows


def _empty(split: ReportedSplit, base: Path) -> list[dict[str, Any]]:
    assert split.annotations is not None
    if not split.annotations.annotated:
        return []
    rows = np.flatnonzero(split.annotations.images.counts == 0)
    if not len(rows):
        return []
    shown = split.annotations.images.take(rows[:_MAX_ROWS]).paths()
    return [
        {
            "split": split.name,
            "count": len(rows),
            "paths": [_shown(path, base) for path in shown],
            "more": max(0, len(rows) - _MAX_ROWS),
        }
    ]


def _shown(path: Path, base: Path) -> str:
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
