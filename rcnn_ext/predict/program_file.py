"""Files of programs (``.pt2``), read without running what a prepared file could smuggle in.

``torch.export.load`` unpickles some entries of the archive, evaluates expressions of its graph as
Python, calls whatever function below ``torch`` a node names, and loads compiled code if there is
any. None of this is in the programs of :mod:`rcnn_ext.export`. So an archive is checked
against what those hold, entry by entry and string by string, and PyTorch gets a copy that is made
of what was checked only: its reader of archives and Python's need not agree on a prepared one.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from rcnn_ext.errors import UserError

FACTS = "rcnn_ext.json"

_FACTS_ENTRY = f"extra/{FACTS}"
_GRAPH = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = (
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)
_REQUIRED = (_GRAPH, *_CONFIGS)
_TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_OTHERS = ("archive_format", "archive_version", "byteorder", ".data/version")
_SERIAL = ".data/serialization_id"

# The functions besides operators that programs of any of our models call on sizes.
_FUNCTIONS = re.compile(
    r"_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|torch\.sym_(min|max|int|float|not|ite)"
    r"|math\.(ceil|floor|trunc)"
)
_OPERATOR = re.compile(r"torch\.ops\.(aten|rcnn_ext)\.(\w+)\.(\w+)")
# They read or write files, or print.
_FORBIDDEN_OPERATORS = ("from_file", "save", "warn", "_print")

# Sizes as PyTorch writes them: calls of these, symbols and whole numbers.
_EXPRESSION = re.compile(
    r"(?:\b(?:Symbol|Integer|Rational|Add|Mul|Min|Max|Mod|FloorDiv|CeilDiv|CleanDiv|PythonMod"
    r"|ModularIndexing|IntTrueDiv|ToFloat|FloorToInt|CeilToInt|TruncToInt|GreaterThan|LessThan"
    r"|StrictGreaterThan|StrictLessThan|Equality|Unequality|Eq|Ne|And|Or|Not|Where)\("
    r"|'[suz]\d{1,9}'|\b(?:integer|positive|nonnegative)=True\b|\btrue\b|\bfalse\b"
    r"|-?\b\d{1,19}\b|\)|, )*"
)
# The number of proposals of a pyramid of five levels is one of 2,300 characters.
_MAX_EXPRESSION = 10_000
_NAME = re.compile(r"\w*", re.ASCII)
_DOTTED = re.compile(r"[\w.]*", re.ASCII)
_TYPES = ("builtins.tuple", "builtins.list", "builtins.dict")


class ProgramError(UserError, ValueError):
    """A file is no program that ``rcnn-ext export`` writes."""


def read_program(path: Path) -> tuple[ExportedProgram, Any]:
    """Read a program and what :func:`rcnn_ext.export.export` stored beside it.

    Args:
        path: The ``.pt2`` file.

    Returns:
        The program, for the CPU, and the content of its ``rcnn_ext.json``.

    Raises:
        ProgramError: It holds a pickle, compiled code, or a function or text that no program of
            ``rcnn-ext export`` holds; or it is damaged. Nothing of it was run.
        UserError: It cannot be read.
    """
    entries = _read_entries(path)
    facts = _json(path, _FACTS_ENTRY, entries.pop(_FACTS_ENTRY))
    for name in _CONFIGS:
        _check_payloads(path, name, entries[name])
    graph = _json(path, _GRAPH, entries[_GRAPH])
    _check_graph(path, graph)
    version = graph.get("torch_version")
    entries[_GRAPH] = json.dumps(_stripped(graph)).encode()
    with _without_logs():
        try:
            return torch.export.load(_archive(entries)), facts
        except Exception as error:
            # PyTorch raises anything for a graph that is not one, and prints the reason elsewhere.
            raise ProgramError(
                f"{path} is damaged, or cannot be opened by this PyTorch ({torch.__version__}): it "
                f"was exported with PyTorch {version}; export the run again with this one"
            ) from error


def _read_entries(path: Path) -> dict[str, bytes]:
    """Return the entries of an archive by name, after a look at their names alone.

    Raises:
        ProgramError: It is no archive, is damaged, or has an entry that it must not have.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            known = {}
            for item in archive.infolist():
                name = item.filename.partition("/")[2]
                _check_entry(path, name, item)
                if name in known:
                    raise ProgramError(f"{path} has the entry {name} twice: it was tampered with")
                known[name] = item
            missing = [name for name in _REQUIRED if name not in known]
            if missing:
                raise ProgramError(f"{path} is no program: it has no entry {missing[0]}")
            if _FACTS_ENTRY not in known:
                raise ProgramError(f"{path} was not written by rcnn-ext export")
            if sum(item.file_size for item in known.values()) > os.path.getsize(path):
                raise ProgramError(f"{path}: its entries overlap: it was tampered with")
            return {name: archive.read(item) for name, item in known.items()}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ProgramError(
            f"{path} was not written by rcnn-ext export, or is damaged: {error}"
        ) from error


def _check_entry(path: Path, name: str, item: zipfile.ZipInfo) -> None:
    if name == _SAMPLES:
        if item.file_size:
            raise ProgramError(
                f"{path} is refused: its entry {name} is a pickle, which can run code when it is "
                "opened; rcnn-ext export writes none, so export the run again"
            )
    elif not _TENSOR.fullmatch(name) and name not in (
        *_REQUIRED,
        *_OTHERS,
        _FACTS_ENTRY,
        _SERIAL,
    ):
        raise ProgramError(
            f"{path} is refused: it has the entry {name[:80]!r}, which may hold code; rcnn-ext "
            "export writes none of this name"
        )
    if item.compress_type != zipfile.ZIP_STORED:
        raise ProgramError(f"{path} is refused: its entry {name} is compressed, as none should be")


def _json(path: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ProgramError(f"{path} is damaged: its entry {name} is not JSON") from error
    if not isinstance(value, dict):
        raise ProgramError(f"{path} is damaged: its entry {name} is no JSON object")
    return value


def _check_payloads(path: Path, name: str, content: bytes) -> None:
    """Check that all tensors of a section are stored as bytes.

    Raises:
        ProgramError: One is a pickle.
    """
    section = name.rpartition("/")[0]
    config = _json(path, name, content).get("config")
    if not isinstance(config, dict):
        raise ProgramError(f"{path} is damaged: its entry {name} lists no tensors")
    for tensor, payload in config.items():
        if not isinstance(payload, dict) or payload.get("use_pickle") is not False:
            raise ProgramError(
                f"{path} is refused: {name} has {tensor[:80]!r} as a pickle, which can run code "
                "when it is opened; rcnn-ext export writes none, so export the run again"
            )
        if not _TENSOR.fullmatch(f"{section}/{payload.get('path_name')}"):
            raise ProgramError(f"{path} is damaged: {tensor[:80]!r} in {name} names no tensor")


def _check_graph(path: Path, graph: dict[str, Any]) -> None:
    """Check all text of a graph but what :func:`_stripped` drops.

    Raises:
        ProgramError: Some of it could be more than names and sizes.
    """
    for key, text in _texts(_stripped(graph), ""):
        if not _is_harmless(key, text):
            raise ProgramError(
                f"{path} is refused: its program has {text[:80]!r} as a {key or 'value'}, which "
                "could run code; no program of rcnn-ext export has it"
            )


def _is_harmless(key: str, text: str) -> bool:
    if key == "target":
        return _is_known_function(text) or (text == "")
    if key == "expr_str":
        return len(text) <= _MAX_EXPRESSION and _EXPRESSION.fullmatch(text) is not None
    if key == "name":
        return _NAME.fullmatch(text) is not None
    if key in ("in_spec", "out_spec"):
        return _is_known_tree(text)
    # Arguments of operators are never evaluated.
    return key == "as_string" or _DOTTED.fullmatch(text) is not None


@functools.cache
def _is_known_function(target: str) -> bool:
    match = _OPERATOR.fullmatch(target)
    if match is None:
        return _FUNCTIONS.fullmatch(target) is not None
    namespace, name, overload = match.groups()
    operator = getattr(getattr(getattr(torch.ops, namespace), name, None), overload, None)
    return isinstance(operator, torch._ops.OpOverload) and name not in _FORBIDDEN_OPERATORS


def _is_known_tree(text: str) -> bool:
    """Return whether the structure of arguments or results is of tuples, lists and dicts alone."""
    try:
        version, tree = json.loads(text)
        pending: list[Any] = [tree]
        if version != 1:
            return False
        while pending:
            node = pending.pop()
            if set(node) != {"type", "context", "children_spec"}:
                return False
            if node["type"] is not None and node["type"] not in _TYPES:
                return False
            context = node["context"]
            if context is not None:
                keys = json.loads(context)
                if not all(isinstance(key, str) and _NAME.fullmatch(key) for key in keys or []):
                    return False
            pending += node["children_spec"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return False
    return True


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield all text in a value, the keys of dicts among it, each with the key that it is under."""
    pending = [(key, value)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, dict):
            for name, inner in value.items():
                yield "", name
                pending.append((name, inner))
        elif isinstance(value, list):
            pending += [(key, inner) for inner in value]


def _stripped(graph: dict[str, Any]) -> dict[str, Any]:
    """Return a graph without what is not needed to run it, such as where in the source it is from.

    Guards are Python source that PyTorch runs; they only repeat what the graph asserts.
    """
    stripped = {
        key: [] if key == "guards_code" else value
        for key, value in graph.items()
        if key != "torch_version"
    }
    module = stripped.get("graph_module")
    if isinstance(module, dict):
        module = dict(module, metadata={})
        calls = module.get("module_call_graph")
        # The others describe the submodules.
        module["module_call_graph"] = calls[:1] if isinstance(calls, list) else calls
        inner = module.get("graph")
        if isinstance(inner, dict) and isinstance(inner.get("nodes"), list):
            nodes = [
                dict(node, metadata={}) if isinstance(node, dict) else node
                for node in inner["nodes"]
            ]
            module["graph"] = dict(inner, nodes=nodes)
        stripped["graph_module"] = module
    return stripped


def _archive(entries: dict[str, bytes]) -> io.BytesIO:
    """Return an archive of entries, as ``torch.export.load`` takes it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"program/{name}", content)
        if _SAMPLES not in entries:
            archive.writestr(f"program/{_SAMPLES}", b"")
    file.seek(0)
    return file


@contextmanager
def _without_logs() -> Iterator[None]:
    """Keep PyTorch from printing the traceback of an error that it raises another one for."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
