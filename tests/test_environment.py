"""The record of machine and software that results carry."""

from __future__ import annotations

import json
import pathlib

import torch

from rcnn_ext import _environment
from rcnn_ext._source_hash import csrc_hash

ROOT = pathlib.Path(__file__).parents[1]


def test_a_checkout_knows_the_hash_of_its_sources():
    assert _environment.source_hash() == csrc_hash(ROOT / "csrc")


def test_the_record_is_json_and_names_what_a_figure_depends_on():
    record = json.loads(json.dumps(_environment.describe(torch.device("cpu"))))
    assert record["device"] == "cpu"
    assert record["device_name"] == record["cpu"]["model"]
    assert record["cpu"]["cores"] >= 1
    assert record["versions"]["torch"] == torch.__version__
    assert record["csrc_hash"] in (_environment.built_hash(), _environment.source_hash())


def test_a_distribution_that_is_not_installed_has_no_version():
    assert _environment.installed_version("no-such-distribution") is None
    assert _environment.installed_version("torch") is not None
