"""The operators, Fast R-CNN and the localizer in packages of AOTInductor."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rcnn_ext.config import ModelConfig, Recipe
from rcnn_ext.data.annotations import ClassList
from rcnn_ext.export import export
from rcnn_ext.models.from_config import build_model
from rcnn_ext.predict.checkpoint import SavedDetector
from rcnn_ext.predict.load import load_saved
from tests.helpers.operator_calls import operator_calls

# PyTorch's loader of packages takes no empty list of sizes, as match_boxes has.
CALLS = {n: c for n, c in operator_calls().items() if n != "match_boxes"}
# Most of the time is that of the compiler.
_FAST = {"aot_inductor.compile_wrapper_opt_level": "O0"}

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="compiles with g++ on Linux",
)


class _All(nn.Module):
    def forward(self, *args: Tensor) -> list[Tensor]:
        rest, results = list(args), []
        for call in CALLS.values():
            own, rest = rest[: len(call.args)], rest[len(call.args) :]
            results += tree_leaves(call.function(*own))
        return results


@needs_compiler
def test_all_operators_are_compiled(tmp_path: Path) -> None:
    args = tuple(tensor for call in CALLS.values() for tensor in call.args)
    with torch.no_grad():
        program = torch.export.export(_All(), args)
        with torch._inductor.config.patch(_FAST):
            path = torch._inductor.aoti_compile_and_package(
                program, package_path=str(tmp_path / "all.pt2")
            )
        package = torch._inductor.aoti_load_package(path)
        expected = _All()(*args)
        for found, own in zip(package(*args), expected, strict=True):
            torch.testing.assert_close(found, own)


MODELS = {
    "localizer": {"detector": "localizer", "backbone": "cnn", "fixed_size": (64, 48)},
    "fast_rcnn": {
        "detector": "fast_rcnn",
        "backbone": "resnet18",
        "neck": "fpn",
        "pool_size": 2,
        "returned_layers": [1, 2],
        "min_size": 64,
        "max_size": 96,
    },
}


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("localizer", marks=pytest.mark.long), "fast_rcnn"])
def test_models_are_compiled(name: str, tmp_path: Path) -> None:
    recipe = Recipe(model=ModelConfig(**MODELS[name]))
    torch.manual_seed(0)
    model = build_model(recipe.model, 3, pretrained=False).eval()
    classes = ClassList(("cat", "dog"), (1, 2))
    saved = SavedDetector(Path("made"), recipe, classes, 3, {}, model.state_dict())
    with torch._inductor.config.patch(_FAST):
        export(saved, tmp_path / "model.pt2", format="aoti")
    package = load_saved(tmp_path / "model.pt2", trust=True).build(torch.device("cpu"))
    arguments: list[list[torch.Tensor]] = [[torch.rand(3, 50, 70), torch.rand(3, 64, 40)]]
    if name == "fast_rcnn":
        # Numbers differ between the images, so that the proposals of one are filled up.
        some = torch.tensor([[5.0, 5, 40, 40], [10, 3, 60, 50], [30, 10, 60, 40]])
        arguments.append([some, torch.tensor([[5.0, 5, 30, 40], [10, 20, 40, 60]])])
    for order in (slice(None), slice(None, None, -1)):
        given = [argument[order] for argument in arguments]
        with torch.no_grad():
            results = list(zip(package(*given), model(*given), strict=True))
        for found, own in results:
            assert len(own["boxes"]) > 0
            assert torch.equal(found["labels"], own["labels"])
            torch.testing.assert_close(found["boxes"], own["boxes"], atol=1e-2, rtol=0)
            torch.testing.assert_close(found["scores"], own["scores"], atol=1e-4, rtol=0)
