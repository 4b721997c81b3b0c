"""Every example of README.md and docs runs, and every file that they name exists.

The blocks of a page run in order in one folder, ``python`` blocks with the names of those before.
A ``yaml`` block is part of a recipe, and is read as one. A ``console`` block holds commands after
``$``, and may show lines that their output has (``...`` stands for anything); behind a ``print`` of
a ``python`` block a comment says what it prints. What cannot run here is in ``bash`` or ``text``
blocks, or behind ``<!-- not run: reason -->``.

Training commands run as they are but for the sizes that ``_SMALL`` adds to them.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="lightning comes with the extra train")

import yaml

from rcnn_ext.cli import main
from rcnn_ext.config import Recipe, recipe_from_dict
from tests.docs.page_data import make_page_data

ROOT = Path(__file__).resolve().parents[2]
# docs/mutants.md is a table that a tool writes.
PAGES = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.name != "mutants.md"),
]
# Pages whose blocks are not run, but which name files too.
OTHERS = [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")]
RUN = ("python", "console", "yaml")
NOT_RUN = ("bash", "text", "diff")

_FENCE = re.compile(r"^( *)```(.*)$")
_REASON = re.compile(r"<!-- not run: (.+) -->")
_MAX_REASONS = 4

_SMALL = (
    "model.weights_backbone=null",
    "data.batch_size=2",
    "data.workers=0",
    "evaluation.batch_size=2",
    "runtime.device=cpu",
)
_DETECTOR = (
    "model.backbone=resnet18",
    "model.min_size=64",
    "model.max_size=64",
    "model.pool_size=3",
)
_RPN = (
    "model.rpn_pre_nms_top_n_train=60",
    "model.rpn_pre_nms_top_n_test=60",
    "model.rpn_post_nms_top_n_train=40",
    "model.rpn_post_nms_top_n_test=40",
)
_OF_RECIPE = {
    "fast_rcnn": ("selective_search.mode=single", "selective_search.max_boxes=40"),
    "faster_rcnn_coco": ("model.fixed_size=[64, 64]", *_RPN),
    "faster_rcnn_finetune": ("model.weights=null", "model.fixed_size=[64, 64]", *_RPN),
    "faster_rcnn_roipool": _RPN,
    "faster_rcnn_synthetic": ("data.synthetic.train=8", "data.synthetic.val=4", *_RPN),
    "localizer_csv": ("model.fixed_size=[64, 64]",),
}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Where it stands, relative to the root.
        line: Number of its first line, counted from 1.
        language: What follows the fence.
        text: Its lines.
        reason: Why it is not run, or None.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str | None


def blocks_of(text: str, page: str) -> list[Block]:
    """The fenced blocks of a Markdown text, in order."""
    found: list[Block] = []
    lines = iter(enumerate(text.splitlines(), start=1))
    before = ""
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence is None:
            before = line.strip() or before
            continue
        indent, language = len(fence[1]), fence[2].strip()
        content = []
        for _, inner in lines:
            if inner.strip() == "```":
                break
            content.append(inner[indent:] if inner[:indent].isspace() else inner)
        else:
            raise AssertionError(f"{page}:{number}: this block never ends")
        reason = _REASON.fullmatch(before)
        found.append(
            Block(page, number + 1, language, "\n".join(content), reason[1] if reason else None)
        )
        before = ""
    return found


def page_blocks(path: Path) -> list[Block]:
    return blocks_of(path.read_text(), path.relative_to(ROOT).as_posix())


def run_page(blocks: list[Block]) -> None:
    """Run the blocks of a page in the current folder."""
    namespace = {"__name__": "__main__"}
    for block in blocks:
        if block.reason is not None or block.language not in RUN:
            continue
        if block.language == "console":
            run_console(block)
        elif block.language == "python":
            run_python(block, namespace)
        else:
            recipe_from_dict(yaml.safe_load(block.text))


def run_python(block: Block, namespace: dict[str, object]) -> None:
    # Empty lines in front make the lines of a traceback those of the page.
    code = compile("\n" * (block.line - 1) + block.text, block.page, "exec")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, namespace)
    expected = re.findall(r"^ *print\(.*\)  # (.+)$", block.text, re.MULTILINE)
    must_show(block, expected, output.getvalue())


def run_console(block: Block) -> None:
    for command, expected in commands_of(block):
        arguments = [*command[1:], *small_sizes(command[1:])]
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = main(arguments)
        shown = shlex.join(command)
        assert code == 0, (
            f"{block.page}:{block.line}: {shown}: exit code {code}\n{output.getvalue()}"
        )
        must_show(block, expected, output.getvalue())


def commands_of(block: Block) -> list[tuple[list[str], list[str]]]:
    """The commands of a console block, as words, each with the lines of output shown behind it."""
    commands: list[tuple[list[str], list[str]]] = []
    lines = iter(block.text.splitlines())
    for line in lines:
        if not line.startswith("$ "):
            assert commands, f"{block.page}:{block.line}: output before any command"
            commands[-1][1].append(line)
            continue
        while line.endswith("\\"):
            line = line[:-1] + next(lines)
        words = shlex.split(line[2:], comments=True)
        assert words[0] == "rcnn-ext", f"{block.page}:{block.line}: {words[0]} belongs in bash"
        commands.append((words, []))
    return commands


def small_sizes(arguments: list[str]) -> list[str]:
    """What makes a command short."""
    if arguments[0] == "bench":
        return ["--quick", "--only", "generalized_box_iou/500x50", "--threads", "1"]
    if arguments[0] != "train" or "--show" in arguments:
        return []
    if arguments[1].startswith("--"):
        assert "--resume" in arguments, "only a resumed run has a recipe of its own"
        return []
    recipe = Path(arguments[1]).stem
    small = [*_SMALL]
    if recipe != "localizer_csv":
        small += [*_DETECTOR]
    elif "model.backbone=cnn" not in arguments:
        small.append("model.backbone=resnet18")
    for name, sizes in _OF_RECIPE.items():
        if recipe.startswith(name):
            small += sizes
    return [*small, *([] if "--max-steps" in arguments else ["--max-steps", "2"])]


def must_show(block: Block, expected: list[str], output: str) -> None:
    """Fail unless the output has lines with all that is expected, in this order."""
    rest = iter(output.splitlines())
    for line in expected:
        parts = [re.escape(part.strip()) for part in line.split("...")]
        pattern = re.compile(".*".join(parts))
        assert any(pattern.search(found) for found in rest), (
            f"{block.page}:{block.line}: expected {line!r} in\n{output}"
        )


@pytest.fixture(scope="module")
def page_data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page_data")
    make_page_data(folder)
    return folder


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_examples_run(path, page_data, tmp_path, monkeypatch, one_thread):
    folder = tmp_path / "page"
    shutil.copytree(page_data, folder)
    monkeypatch.chdir(folder)
    run_page(page_blocks(path))


def test_blocks_have_a_known_language_and_few_are_not_run():
    blocks = [block for path in PAGES for block in page_blocks(path)]
    unknown = [(b.page, b.line, b.language) for b in blocks if b.language not in RUN + NOT_RUN]
    assert not unknown
    reasons = [(block.page, block.line, block.reason) for block in blocks if block.reason]
    assert len(reasons) <= _MAX_REASONS, reasons
    assert sum(block.language in RUN and not block.reason for block in blocks) > 20


@pytest.mark.parametrize(
    "text",
    [
        "```python\nfrom rcnn_ext.ops import no_such_operator\n```",
        "```python\nassert False\n```",
        "```python\nprint(1 + 1)  # 3\n```",
        "```console\n$ rcnn-ext train faster_rcnn_coco --data coco --out x optimizer.rl=1\n```",
        "```console\n$ rcnn-ext check nowhere\n```",
        "```console\n$ pip install .\n```",
        "```yaml\noptimizer: {rl: 1}\n```",
        "```console\n$ rcnn-ext check coco\nno such line\n```",
    ],
)
def test_a_mistake_in_a_block_fails(text, page_data, monkeypatch):
    monkeypatch.chdir(page_data)
    with pytest.raises((Exception, SystemExit)):
        run_page(blocks_of(text, "a page"))


def test_a_block_with_a_reason_is_left_out():
    text = "<!-- not run: it would fail -->\n```python\nassert False\n```\n\n```python\nx = 1\n```"
    first, second = blocks_of(text, "a page")
    assert (first.reason, second.reason) == ("it would fail", None)
    run_page([first, second])


# Folders of the repository; the paths of examples are others.
_PATH = re.compile(
    r"(?<![\w/.-])((?:csrc|rcnn_ext|tests|tools|benchmarks|docs)/[\w./*-]*[\w*]|Makefile|setup\.py)(?![\w*<])"
)
_TARGET = re.compile(r"^\s*make ([a-z-]+)|`make ([a-z-]+)", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


@pytest.mark.parametrize("path", PAGES + OTHERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_targets_and_links_exist(path):
    text = path.read_text()
    named = {match[0] for match in _PATH.finditer(text)}
    missing = sorted(name for name in named if not list(ROOT.glob(name.rstrip("."))))
    targets = {match[1] or match[2] for match in _TARGET.finditer(text)}
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    missing += sorted(f"make {target}" for target in targets - known)
    for link in _LINK.findall(text):
        if not link.startswith(("http:", "https:")) and not (path.parent / link).exists():
            missing.append(link)
    assert not missing, f"{path.name} names what does not exist"


_KEY = re.compile(
    r"(?<![\w./-])((?:model|data|selective_search|optimizer|schedule|evaluation|runtime)"
    r"(?:\.[a-z][a-z_0-9]*)+)(?=[=`: ,\]])"
)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_keys_of_recipes_exist(path):
    missing = []
    for key in {match[1] for match in _KEY.finditer(path.read_text())} - {
        "data.yaml",
        "model.safetensors",
    }:
        value: object = Recipe()
        for name in key.split("."):
            if not hasattr(value, name):
                missing.append(key)
                break
            value = getattr(value, name)
    assert not missing
