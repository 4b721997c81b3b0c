"""From YAML files and overrides to recipes, and back."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rcnn_ext.config.parse import RecipeError, from_dict
from rcnn_ext.config.recipe import Recipe
from rcnn_ext.errors import UserError

_FOLDER = Path(__file__).parents[1] / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and replace single values.

    Args:
        name_or_path: A name of :func:`recipe_names` or the path of a YAML file.
        overrides: ``section.key=value`` each, the value in YAML: ``optimizer.lr=0.01``,
            ``model.weights_backbone=null``, ``data.classes=[cat, dog]``.

    Raises:
        UserError: There is no such recipe, it is not YAML, or a key or value is wrong.
    """
    path = _locate(name_or_path)
    values = _read_yaml(path)
    try:
        from_dict(Recipe, values)
    except RecipeError as error:
        raise UserError(f"{_place_of(path, error.key)}: {error}") from None
    for override in overrides:
        apply_override(values, override)
    return from_dict(Recipe, values)


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """Return the recipe with that many steps in all.

    The first phase changes its length, and where there is a second it gets what is left after the
    first, or is left out.
    """
    refine = recipe.refine
    if refine is not None and steps > recipe.schedule.steps:
        schedule = dataclasses.replace(refine.schedule, steps=steps - recipe.schedule.steps)
        return dataclasses.replace(recipe, refine=dataclasses.replace(refine, schedule=schedule))
    schedule = dataclasses.replace(recipe.schedule, steps=steps)
    return dataclasses.replace(recipe, schedule=schedule, refine=None)


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
