"""Fixtures that several folders of tests share."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

# A detector and a data set so small that a training step takes a fraction of a second.
TINY = (
    "model.backbone=mobilenet_v3_large",
    "model.returned_layers=[2, 3, 4]",
    "model.pool_size=2",
    "model.min_size=64",
    "model.max_size=64",
    "model.anchor_sizes=[16, 32, 48, 64]",
    "data.synthetic.size=64",
    "data.synthetic.train=8",
    "data.synthetic.val=4",
    "data.batch_size=2",
    "data.workers=0",
    "evaluation.batch_size=2",
    "runtime.device=cpu",
    "runtime.loggers=[csv]",
)


@pytest.fixture(autouse=True)
def _restore_random_state() -> Iterator[None]:
    """No test sees random numbers, or threads, that depend on which tests ran before it."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def _give_memory_back() -> Iterator[None]:
    """A process that runs thousands of tests holds what lives, not what once was."""
    yield
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from threads, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class TinyRun:
    """A finished training run.

    Attributes:
        data: Its data folder.
        out: What it wrote.
        overrides: What makes the recipe small.
        steps: Its number of steps.
    """

    data: Path
    out: Path
    overrides: tuple[str, ...]
    steps: int


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, one_thread):
    """A detector trained for some steps through the command line, with a validation half way."""
    pytest.importorskip("lightning", reason="lightning comes with the extra train")
    from rcnn_ext.cli import main

    folder = tmp_path_factory.mktemp("tiny")
    run = TinyRun(folder / "data", folder / "out", (*TINY, "evaluation.val_every=2"), 4)
    arguments = ["train", "faster_rcnn_synthetic", "--data", str(run.data), "--out", str(run.out)]
    assert main([*arguments, "--max-steps", str(run.steps), *run.overrides]) == 0
    return run


@pytest.fixture
def offline_hub(monkeypatch, tmp_path):
    """The package `datasets` without the network, and with a cache of the test's own."""
    config = pytest.importorskip("datasets", reason="datasets comes with the extra hf").config
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    # Newer versions wait seconds for the threads of an epoch that has ended.
    monkeypatch.setattr(config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hugging Face Hub on this machine, with a cache and a token of the test's own."""
    constants = pytest.importorskip(
        "huggingface_hub.constants", reason="huggingface_hub comes with the extra hf"
    )
    from tests.helpers.hub_server import TOKEN, running_hub

    with running_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
