"""From YAML files and overrides to recipes, and back."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rcnn_ext.config.parse import RecipeError, from_dict
from rcnn_ext.config.recipe import Recipe
from rcnn_ext.config.training import ScheduleConfig
from rcnn_ext.errors import UserError

_FOLDER = Path(__file__).parents[1] / "recipes"
_DATA_SECTIONS = ("data", "selective_search")
_SCHEDULES = ("schedule", "refine.schedule")


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_recipe(
    name_or_path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    max_steps: int | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> Recipe:
    """Read a recipe and replace single values.

    Of ``schedule.steps`` and ``schedule.epochs``, the one that is replaced takes the place of the
    other; milestones that are not replaced too keep their places as fractions of the whole. Where
    the recipe has a second phase and its length is not replaced as well, it is the length of both
    phases together, as ``max_steps``.

    Args:
        name_or_path: A name of :func:`recipe_names` or the path of a YAML file.
        overrides: ``section.key=value`` each, the value in YAML: ``optimizer.lr=0.01``,
            ``model.weights_backbone=null``, ``data.classes=[cat, dog]``.
        max_steps: Number of steps in all, as by :func:`with_steps`; None takes the recipe's.
        log: Called with a line where an override changes the second phase too.

    Raises:
        UserError: There is no such recipe, it is not YAML, or a key or value is wrong.
    """
    path = _locate(os.fspath(name_or_path))
    values = _read_yaml(path)
    try:
        before = from_dict(Recipe, values)
    except RecipeError as error:
        raise UserError(f"{_place_of(path, error.key)}: {error}") from None
    for override in overrides:
        apply_override(values, override)
    recipe = _with_units(values, before, overrides)
    if max_steps is not None:
        return with_steps(recipe, max_steps)
    return _with_total(recipe, before, _keys(overrides), log)


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """Return the recipe with that many steps in all.

    The first phase changes its length, and where there is a second it gets what is left after the
    first, or is left out. A first phase in epochs, whose length is not known yet, gets all.
    """
    first, refine = recipe.schedule, recipe.refine
    if refine is not None and first.steps is not None and steps > first.steps:
        schedule = refine.schedule.in_unit(steps=steps - first.steps)
        return dataclasses.replace(recipe, refine=dataclasses.replace(refine, schedule=schedule))
    return dataclasses.replace(recipe, schedule=first.in_unit(steps=steps), refine=None)


def _keys(overrides: Sequence[str]) -> set[str]:
    return {override.partition("=")[0].strip() for override in overrides}


def _with_units(values: dict[str, Any], before: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return the recipe of values to which overrides were applied, each length in one unit.

    Args:
        values: The recipe with overrides; it is changed.
        before: The recipe without them.
        overrides: The overrides.
    """
    keys = _keys(overrides)
    moved: list[tuple[str, ScheduleConfig]] = []
    for name in _SCHEDULES:
        section: Any = values
        for part in name.split("."):
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            continue
        for unit, other in (("steps", "epochs"), ("epochs", "steps")):
            given = f"{name}.{unit}" in keys and section.get(unit) is not None
            if given and f"{name}.{other}" not in keys:
                old = _schedule(before, name)
                section.pop(other, None)
                if getattr(old, unit) is None and f"{name}.milestones" not in keys:
                    section.pop("milestones", None)
                    moved.append((name, old))
    recipe = from_dict(Recipe, values)
    for name, old in moved:
        schedule = _schedule(recipe, name)
        changed = old.in_unit(steps=schedule.steps, epochs=schedule.epochs)
        schedule.milestones = changed.milestones
    return recipe


def _schedule(recipe: Recipe, name: str) -> ScheduleConfig:
    if name == "schedule":
        return recipe.schedule
    return ScheduleConfig() if recipe.refine is None else recipe.refine.schedule


def _with_total(
    recipe: Recipe, before: Recipe, keys: set[str], log: Callable[[str], None]
) -> Recipe:
    """Let a length that was given for the first phase only be that of both."""
    own = {"refine", "refine.schedule", "refine.schedule.steps", "refine.schedule.epochs"}
    given = keys & {"schedule.steps", "schedule.epochs"}
    if before.refine is None or recipe.refine is None or not given or keys & own:
        return recipe
    if recipe.schedule.steps is None:
        total = f"schedule.epochs={recipe.schedule.epochs:g}"
        result = dataclasses.replace(recipe, refine=None)
    else:
        total = f"schedule.steps={recipe.schedule.steps}"
        first = dataclasses.replace(recipe, schedule=before.schedule)
        result = with_steps(first, recipe.schedule.steps)
        result.schedule = dataclasses.replace(recipe.schedule, steps=result.schedule.steps)
    parts = "the second phase (refine) is left out"
    if result.refine is not None:
        parts = (
            f"{result.schedule.steps} steps, and {result.refine.schedule.steps} of the second "
            "phase (refine)"
        )
    log(f"{total} is the whole length: {parts}; refine.schedule.steps=N sets the second apart")
    return result


def with_data_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return the recipe of a trained model with other values about the data that it is shown.

    Args:
        recipe: The recipe.
        overrides: As for :func:`load_recipe`, of the sections ``data`` and ``selective_search``.

    Raises:
        UserError: One is of another section, or would change the classes; or it is wrong.
    """
    values = dataclasses.asdict(recipe)
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key.partition(".")[0] not in _DATA_SECTIONS:
            sections = " and ".join(f"{section}.*" for section in _DATA_SECTIONS)
            raise UserError(f"a trained model stays as it is: {sections} may change, not {key}")
        if key == "data.classes":
            raise UserError("data.classes cannot change: the model has learned its own classes")
        apply_override(values, override)
    return from_dict(Recipe, values)


def recipe_from_dict(values: Any) -> Recipe:
    """Return the recipe that became a dictionary by ``dataclasses.asdict``, as in checkpoints.

    Raises:
        UserError: A key or value is wrong.
    """
    return from_dict(Recipe, values)


def recipe_to_yaml(recipe: Recipe) -> str:
    """Return the whole recipe, defaults included, as YAML that :func:`load_recipe` reads."""
    import yaml

    values = _without_tuples(dataclasses.asdict(recipe))
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True)


def _without_tuples(value: Any) -> Any:
    """Replace tuples, which YAML would write with a Python tag, by lists."""
    if isinstance(value, dict):
        return {key: _without_tuples(inner) for key, inner in value.items()}
    return (
        [_without_tuples(inner) for inner in value] if isinstance(value, (list, tuple)) else value
    )


def _locate(name_or_path: str) -> Path:
    names = recipe_names()
    if name_or_path in names:
        return _FOLDER / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if path.is_file():
        return path
    near = difflib.get_close_matches(name_or_path, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    raise UserError(f"no recipe or file {name_or_path}; {hint}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recipe {path}: {error}") from error
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a recipe: its top level has no keys")
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one value of a recipe that is still a dictionary.

    Args:
        values: The recipe; it is changed.
        override: ``section.key=value``, the value in YAML.

    Raises:
        UserError: ``override`` has no such form.
    """
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"{override!r} is not an override; write section.key=value")
    section = values
    for part in parts[:-1]:
        # A section may be missing or null in the file; any other value is an error to find later.
        inner = section.get(part)
        section[part] = section = inner if isinstance(inner, dict) else {}
    section[parts[-1]] = _parse_yaml(text, override)


def _place_of(path: Path, key: str) -> str:
    """Return ``path:line`` of a dotted key, or of as much of it as the file has."""
    import yaml

    place = str(path)
    node = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    for part in key.split("."):
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        found = [(name, value) for name, value in entries if name.value == part]
        if not found:
            break
        name, node = found[0]
        place = f"{path}:{name.start_mark.line + 1}"
    return place


def _parse_yaml(text: str, where: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that occurs twice; YAML would silently take the last."""

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        merge = "tag:yaml.org,2002:merge"
        keys = [loader.construct_object(key) for key, _ in node.value if key.tag != merge]
        twice = [key for index, key in enumerate(keys) if key in keys[:index]]
        if twice:
            line = node.start_mark.line + 1
            raise UserError(
                f"{where}: the key {twice[0]} occurs twice in the section at line {line}"
            )
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "bad characters"
        raise UserError(f"{where} is not valid YAML: {problem}{place}") from None
    except RecursionError:
        raise UserError(f"{where}: lists or mappings are nested too deeply for a recipe") from None
    except (ValueError, TypeError):
        raise UserError(f"{where}: a key, number or date in it is none: is it damaged?") from None
