"""Reading YAML that anybody may have written: no code, and no more than fits the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rcnn_ext.data.text_files import decode_text
from rcnn_ext.errors import UserError

_MAX_BYTES = 16 << 20
_MAX_DEPTH = 50

# Aliases repeat what they stand for, and aliases of aliases do so exponentially.
_MAX_NODES = 1_000_000


def load_yaml(path: Path, encoding: str | None = None, *, lenient: bool = False) -> Any:
    """Return the content of a YAML file: mappings, lists, text, numbers, dates and null.

    Args:
        path: The file.
        encoding: See :func:`rcnn_ext.data.text_files.read_text`.
        lenient: Whether bytes in another encoding are replaced rather than an error.

    Raises:
        UserError: It cannot be read, or is too large, too deep or repeats too much.
    """
    import yaml

    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file")
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise UserError(
                f"{path} has {size >> 20} MiB; a YAML file of more than {_MAX_BYTES >> 20} MiB is "
                "not read"
            )
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    try:
        text = decode_text(content, path, encoding)
    except UserError:
        if not lenient:
            raise
        text = content.decode("utf-8", errors="replace")
    loader_type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _refuse_deep(path, text, loader_type)
        loader = loader_type(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _count(node, {}) > _MAX_NODES:
                raise UserError(f"{path}: its aliases repeat what they stand for too often")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}{_where(error)} cannot be read as YAML: {_reason(error)}") from None


def _refuse_deep(path: Path, text: str, loader_type: Any) -> None:
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=loader_type):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            mark: Any = event.start_mark
            raise UserError(
                f"{path}:{mark.line + 1}: more than {_MAX_DEPTH} lists and mappings "
                "within each other"
            )


def _count(node: Any, known: dict[int, int]) -> int:
    """Return the number of values below a node, those of aliases each time."""
    key = id(node)
    if key not in known:
        # An alias within what it stands for would never end.
        known[key] = _MAX_NODES + 1
        value = node.value
        children = value if isinstance(value, list) else []
        flat = [part for item in children for part in (item if isinstance(item, tuple) else [item])]
        known[key] = min(1 + sum(_count(child, known) for child in flat), _MAX_NODES + 1)
    return known[key]


def _where(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark is not None else ""


def _reason(error: Exception) -> str:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return " ".join(str(problem).split())[:200]
