"""Run a command on damaged files in a process of its own, and judge how it ended."""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rcnn_ext.cli.app import COMMANDS, main
from tests.fuzz.damage import damage
from tests.fuzz.seeds import SEEDS, make_support
from tests.helpers.order_server import OrderServer
from tests.helpers.run_python import ROOT

SECONDS = 10
GROWTH = 2 << 30
CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Case:
    """Damaged files of a seed.

    Attributes:
        seed: Name of the seed.
        files: Contents by path in the seed's folder.
    """

    seed: str
    files: dict[str, bytes]

    def save(self, path: Path) -> None:
        packed = {
            name: base64.b64encode(zlib.compress(content, 9)).decode()
            for name, content in self.files.items()
        }
        path.write_text(json.dumps({"seed": self.seed, "files": packed}, indent=1) + "\n")


def load_case(path: Path) -> Case:
    content = json.loads(path.read_text())
    files = {
        name: zlib.decompress(base64.b64decode(packed)) for name, packed in content["files"].items()
    }
    return Case(content["seed"], files)


class Fuzzer:
    """Makes cases and runs them.

    Args:
        folder: For the whole files, made once, and for the files of a case.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.support = folder / "support"
        self.support.mkdir()
        make_support(self.support)
        self._warm_up()

    def _warm_up(self) -> None:
        """Let the server import now what it otherwise would in the process of each case."""
        data, model = str(self.support / "data"), str(self.support / "model.safetensors")
        out = ["--out", str(self.folder / "warm")]
        picture = str(self.support / "picture.png")
        evaluate = ["eval", model, "--data", data, "--split", "train", *out]
        for command in (["check", data], ["detect", model, picture, *out], evaluate):
            _ask(command=command)

    def _whole(self, name: str) -> Path:
        root = self.folder / "seeds" / name.replace("/", "_") / "data"
        if not root.exists():
            root.mkdir(parents=True)
            SEEDS[name].make(root)
        return root

    def random_case(self, draw: random.Random, name: str | None = None) -> Case:
        """Return a case of a seed with one file or a few damaged."""
        name = name or draw.choice(list(SEEDS))
        root = self._whole(name)
        endings = SEEDS[name].damaged
        paths = sorted(
            path
            for path in root.rglob("*")
            if path.is_file() and (not endings or path.name.endswith(tuple(endings)))
        )
        chosen = draw.sample(paths, min(len(paths), draw.choice((1, 1, 1, 3))))
        files = {
            path.relative_to(root).as_posix(): damage(path.read_bytes(), draw) for path in chosen
        }
        return Case(name, files)

    def failures(self, case: Case) -> Iterator[tuple[list[str], str]]:
        """Run the commands of a case.

        Yields:
            Each command that ended as none must, and how.
        """
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        root = run / "data"
        if case.seed == "pictures":
            # A folder of hundreds of whole pictures would take the time of hundreds of cases.
            root.mkdir(parents=True)
            for name in case.files:
                (root / name).with_suffix(".txt").write_text("0 0.5 0.5 0.5 0.5\n")
        else:
            shutil.copytree(self._whole(case.seed), root)
        for name, content in case.files.items():
            (root / name).write_bytes(content)
        for command in SEEDS[case.seed].commands(root, self.support):
            fault = run_command(command, run)
            if fault:
                yield command, fault


def run_command(command: Sequence[str], folder: Path, seconds: float = SECONDS) -> str:
    """Run a command of ``rcnn-ext`` in a forked process; return what is wrong with its end, or "".

    Right are the exit codes 0 and 2, at most one line of errors that is ours, and an end within
    ``seconds`` of processor time and without 2 GB more memory.
    """
    return _ask(command=list(command), folder=str(folder), seconds=seconds)


def _ask(**order: Any) -> str:
    """Give the server an order; without a folder it runs the command itself."""
    return str(_server().ask(order))


@functools.cache
def _server() -> OrderServer:
    """Start a process that forks: it has imported everything, and no threads.

    What is forked from a process with threads, such as one that ran other tests, may wait for
    their locks, or for OpenMP's other threads, for good.
    """
    code = "from tests.fuzz.harness import serve; serve()"
    return OrderServer([sys.executable, "-c", code], {**os.environ, "PYTHONPATH": str(ROOT)})


def serve() -> None:
    """Answer orders on standard input with what is wrong, until it ends."""
    torch.set_num_threads(1)
    _import_everything()
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        if "folder" in order:
            fault = _fork_command(order["command"], Path(order["folder"]), order["seconds"])
        else:
            fault = ""
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                main(order["command"])
        print(json.dumps(fault), flush=True)


def _fork_command(command: Sequence[str], folder: Path, seconds: float) -> str:
    output = folder / "output.txt"
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _become_command(command, output, seconds)
    # Processor time is limited in the child; another process may keep it from its processor.
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - start > 12 * seconds:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(status)
    text = output.read_text(errors="replace")
    tail = " ... ".join(text.strip().splitlines()[-2:])[-400:]
    if usage.ru_utime + usage.ru_stime >= seconds or code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"took more than {seconds} s (exit code {code}): {tail}"
    if code not in (0, 2):
        return f"exit code {code}: {tail}"
    for sign in ("Traceback (most", "weights_only", "unexpected ", "Segmentation"):
        if sign in text:
            return f"prints {sign!r}: {tail}"
    ours = [line for line in text.splitlines() if line.startswith("rcnn-ext: ")]
    if code == 2 and not ours and "errors," not in text:
        return f"exit code 2 without a message: {tail}"
    if any(len(line) > 4000 for line in text.splitlines()):
        return f"a line of {max(map(len, text.splitlines()))} characters"
    return ""


def _become_command(command: Sequence[str], output: Path, seconds: float) -> None:
    code = 1
    try:
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + GROWTH
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        try:
            code = main([*command])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _import_everything() -> None:
    """Import what commands import, once, so that no process of a case has to."""
    modules = [f"rcnn_ext.cli.{name.replace('-', '_')}" for name in COMMANDS]
    modules += ["lxml.etree", "yaml", "pyarrow", "matplotlib.pyplot", "torch.export"]
    modules += ["torch._export.serde.serialize", "torch.export.pt2_archive._package", "sympy"]
    modules += ["rcnn_ext.train", "rcnn_ext.train.run", "rcnn_ext.metrics.evaluate"]
    modules += ["rcnn_ext.data.check", "rcnn_ext.predict.detect", "faster_coco_eval"]
    for name in modules:
        # Some come with extras.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def temporary_fuzzer() -> Fuzzer:
    return Fuzzer(Path(tempfile.mkdtemp(prefix="fuzz-")))
