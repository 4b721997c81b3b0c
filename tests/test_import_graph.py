"""Packages import downwards only, and no module imports itself through others."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rcnn_ext"

# Modules and packages of `rcnn_ext`, the lowest first: each may import those before it. The root
# itself holds the version, and imports the others only when they are asked for.
LAYERS = (
    "rcnn_ext",
    "errors",
    "config",
    "_memory_format",
    "_source_hash",
    "_operator_library",
    "_extension",
    "reference",
    "ops",
    "onnx",
    "torchvision_compat",
    "_environment",
    "files",
    "locks",
    "progress",
    "distributed",
    "shards",
    "hub",
    "data",
    "fonts",
    "viz",
    "selective_search",
    "models",
    "accelerate",
    "data_report",
    "metrics",
    "predict",
    "export",
    "train",
    "bench",
    "cli",
    "__main__",
)

# Imports against the order, each with its reason.
ALLOWED: dict[tuple[str, str], str] = {}


def _module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {_module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _imports(module: str, *, in_functions: bool) -> set[str]:
    """Return the modules of the package that a module imports when it runs."""
    found: set[str] = set()
    pending: list[ast.AST] = list(ast.parse(MODULES[module].read_text(encoding="utf-8")).body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += node.orelse
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found |= {name if name in MODULES else node.module for name in names}
        elif in_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += ast.iter_child_nodes(node)
    return found & MODULES.keys() - {module}


def _layer(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def back_edges() -> dict[tuple[str, str], str]:
    """Return the imports against the order of ``LAYERS``, also in functions, with an example."""
    edges = {
        (_layer(module), _layer(imported)): f"{module} imports {imported}"
        for module in MODULES
        for imported in _imports(module, in_functions=True)
    }
    return {
        (upper, lower): example
        for (upper, lower), example in edges.items()
        if upper != lower and LAYERS.index(upper) < LAYERS.index(lower)
    }


def test_every_package_has_a_layer() -> None:
    assert sorted({_layer(module) for module in MODULES}) == sorted(LAYERS)


def test_packages_import_downwards() -> None:
    unexpected = [example for edge, example in back_edges().items() if edge not in ALLOWED]
    assert not unexpected, unexpected


def test_every_exception_is_still_needed() -> None:
    assert ALLOWED.keys() <= back_edges().keys()


@pytest.mark.parametrize("in_functions", [False, True])
def test_no_module_imports_itself_through_others(in_functions: bool) -> None:
    graph = {module: _imports(module, in_functions=in_functions) for module in MODULES}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
    assert order.index("rcnn_ext.predict.checkpoint") < order.index("rcnn_ext.train.run")
