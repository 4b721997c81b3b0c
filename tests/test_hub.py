"""Files of the Hub are found by ids, from a server on this machine and without any."""

from __future__ import annotations

import sys

import pytest

from rcnn_ext.errors import UserError
from rcnn_ext.hub import HubError, HubId, fetch_hub_file, is_hub_id, parse_hub_id
from tests.helpers.hub_server import COMMIT

NAMES = ("model.safetensors", "best.ckpt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub:me/cats", HubId("me/cats")),
        ("hub:me/cats@v1", HubId("me/cats", None, "v1")),
        ("hub:me/cats@refs/pr/1", HubId("me/cats", None, "refs/pr/1")),
        ("hub:me/cats/a/b.pth@v1", HubId("me/cats", "a/b.pth", "v1")),
    ],
)
def test_ids_are_parsed(text, expected):
    assert parse_hub_id(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "hub:",
        "hub:cats",
        "hub:me/",
        "hub:/cats",
        "hub:me/cats@",
        "hub:me/../x",
        "hub:me/a b",
        "me/x",
    ],
)
def test_what_is_no_id_is_told(text):
    with pytest.raises(UserError, match="is no id of the Hugging Face Hub: write hub:owner/name"):
        parse_hub_id(text)


def test_what_is_meant_as_an_id():
    assert is_hub_id("hub:x")
    assert not is_hub_id("runs/first")
    assert not is_hub_id(None)


def test_the_first_name_that_exists_is_fetched_once(hub):
    hub.files["me/cats"] = {"README.md": b"cats", "best.ckpt": b"weights"}
    path = fetch_hub_file("hub:me/cats", NAMES)
    assert (path.name, path.read_bytes()) == ("best.ckpt", b"weights")
    assert fetch_hub_file("hub:me/cats/README.md", NAMES).read_bytes() == b"cats"
    fetch_hub_file(f"hub:me/cats@{COMMIT}", NAMES)
    fetch_hub_file("hub:me/cats@v1", NAMES)
    assert sum(word.startswith("GET") and "best.ckpt" in word for word in hub.requests) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hub:me/dogs", "hub:me/dogs: there is no such repository, or it is private"),
        ("hub:me/cats@v9", "hub:me/cats@v9: the repository has no such revision"),
        (
            "hub:me/cats",
            "has no model.safetensors or best.ckpt; its files are README.md: name one as "
            "hub:me/cats/FILE",
        ),
        ("hub:me/cats/x.pth", "has no x.pth; its files are README.md"),
        ("hub:me/secret", "hub:me/secret: it is gated: ask for access"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub, text, message):
    hub.files |= {"me/cats": {"README.md": b"cats"}, "me/secret": {}}
    hub.gated.add("me/secret")
    with pytest.raises(HubError, match=message) as error:
        fetch_hub_file(text, NAMES)
    assert "\n" not in str(error.value)


def test_without_a_network_a_cached_file_will_do(hub, capfd):
    hub.files["me/cats"] = {"best.ckpt": b"weights"}
    online = fetch_hub_file("hub:me/cats", NAMES)
    hub.shutdown()
    hub.server_close()
    assert fetch_hub_file("hub:me/cats", NAMES) == online
    with pytest.raises(HubError) as error:
        fetch_hub_file("hub:me/dogs@v1", NAMES)
    assert str(error.value) == (
        "cannot fetch model.safetensors of hub:me/dogs@v1: there is no connection to the Hub, and "
        "the file is not in the cache; check the network, or run hf download me/dogs "
        "model.safetensors --local-dir FOLDER --revision v1 where there is one, and give "
        "FOLDER/model.safetensors instead"
    )
    # The library would retry for half a minute, with a line for each time.
    assert "Retrying" not in capfd.readouterr().err


def test_the_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'rcnn-ext\[hf\]'"):
        fetch_hub_file("hub:me/cats", NAMES)
