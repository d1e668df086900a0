"""The translation of `CHANNEL_LAYERS` for channels_redis, key by key."""

import inspect
import os
import re
from typing import Any

import pytest

from channels_zmq.config import DedicatedConfig, parse
from channels_zmq.tools import ToolError
from channels_zmq.tools.from_redis import _KEYS, CORE, PUBSUB, report, snippet, translate

PULL, PUB = "tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556"
ADDRESSES = {"pull_socket_address": PULL, "pub_socket_address": PUB}
KEY = "0123456789abcdef"


def translated(config: Any, backend: str = CORE) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the translated CONFIG without the addresses, and the fate of each key."""
    (one,) = translate({"default": {"BACKEND": backend, "CONFIG": config}}, PULL, PUB)
    assert {key: one.config[key] for key in ADDRESSES} == ADDRESSES
    rest = {key: value for key, value in one.config.items() if key not in ADDRESSES}
    return rest, {line.key: line.fate for line in one.lines}


def settings(layers: dict[str, Any]) -> dict[str, Any]:
    """Return the CHANNEL_LAYERS of a settings module that contains the snippet."""
    text = "\n".join(snippet(layers, translate(layers, PULL, PUB)))
    scope: dict[str, Any] = {}
    exec(text, scope)
    return dict(scope["CHANNEL_LAYERS"])


@pytest.mark.parametrize("backend", [CORE, PUBSUB])
@pytest.mark.parametrize(
    ("key", "value", "config", "fate"),
    [
        ("hosts", [("redis", 6379)], {}, "replaced"),
        ("hosts", ["redis://a:1", "redis://b:1"], {}, "replaced"),
        ("prefix", "shop", {"prefix": "shop"}, "taken over"),
        ("prefix", "our shop", {}, "left out"),
        ("expiry", 30, {"expiry": 30}, "taken over"),
        ("expiry", 0, {}, "left out"),
        ("group_expiry", 600, {"group_expiry": 600}, "taken over"),
        ("capacity", 500, {"capacity": 500}, "taken over"),
        ("capacity", 0, {}, "left out"),
        ("channel_capacity", {"http.request": 200}, {"channel_capacity": {"http.request": 200}}, "taken over"),
        ("random_prefix_length", 12, {}, "left out"),
        ("serializer_format", "json", {"serializer": "json"}, "renamed"),
        ("serializer_format", "mine", {}, "left out"),
        ("on_disconnect", "layer.gone", {"on_disconnect": "layer.gone"}, "taken over"),
        ("on_reconnect", "layer.back", {"on_reconnect": "layer.back"}, "taken over"),
        ("channel_layer", None, {}, "left out"),
        ("capacitty", 1, {}, "left out"),
    ],
)
def test_each_key_is_taken_over_renamed_or_has_a_reason(
    key: str, value: Any, config: dict[str, Any], fate: str, backend: str
) -> None:
    """Each key is taken over, renamed, replaced, or left out with a reason, and the resulting CONFIG is valid."""
    ours, fates = translated({key: value}, backend)
    assert (ours, fates[key]) == (config, fate)
    parse(DedicatedConfig, {**ADDRESSES, **ours})


def test_every_key_of_channels_redis_is_known() -> None:
    """The translation knows every parameter of the layers of the installed channels_redis."""
    core = pytest.importorskip("channels_redis.core").RedisChannelLayer
    pubsub = pytest.importorskip("channels_redis.pubsub")
    taken = set()
    for made in (core, pubsub.RedisPubSubChannelLayer, pubsub.RedisPubSubLoopLayer):
        taken |= set(inspect.signature(made).parameters) - {"args", "kwargs"}
    assert taken <= set(_KEYS)


def test_encryption_keys_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """No output contains an encryption key: the snippet reads keys from variables, and the report counts short ones."""
    layers = {"default": {"BACKEND": CORE, "CONFIG": {"symmetric_encryption_keys": [KEY, "short"]}}}
    lines = [*report(translate(layers, PULL, PUB)), *snippet(layers, translate(layers, PULL, PUB))]
    text = "\n".join(lines)
    assert KEY not in text
    assert "short" not in text.replace("shorter", "")
    assert "1 of them are shorter than 16 bytes" in text
    monkeypatch.setenv("CHANNELS_KEY_1", KEY)
    monkeypatch.setenv("CHANNELS_KEY_2", KEY[::-1])
    config = settings(layers)["default"]["CONFIG"]
    assert config["symmetric_encryption_keys"] == [os.environ["CHANNELS_KEY_1"], KEY[::-1]]
    parse(DedicatedConfig, config)


def test_the_snippet_is_pythons() -> None:
    """The snippet is valid Python and preserves quotes, patterns with flags, and names with a line break."""
    capacity = {'say "hi"\\': 1, re.compile("jobs.*", re.IGNORECASE): 2, "a\nb": 3}
    config = {"capacity": 7, "channel_capacity": capacity}
    found = settings({"default": {"BACKEND": CORE, "CONFIG": config}})["default"]
    assert found["BACKEND"] == "channels_zmq.core.DedicatedZmqChannelLayer"
    assert found["CONFIG"] == {**ADDRESSES, "capacity": 7, "channel_capacity": capacity}


def test_other_layers_stay_as_they_are() -> None:
    """A layer of another package stays as a comment, since its values may have no Python literal."""
    layers = {"default": {"BACKEND": CORE}, "memory": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    lines = list(snippet(layers, translate(layers, PULL, PUB)))
    assert "    # 'memory': as before" in lines
    assert set(settings(layers)) == {"default"}


def test_what_the_pubsub_layer_did_not_do_is_said() -> None:
    """For the Pub/Sub layer the report lists capacities and the single delivery of normal channels as new."""
    _, fates = translated({"hosts": ["redis://a"]}, PUBSUB)
    assert (fates["capacity"], fates["normal channels"]) == ("new", "new")
    assert "capacity" not in translated({"hosts": ["redis://a"]}, CORE)[1]


@pytest.mark.parametrize(
    ("layers", "pull", "parts"),
    [
        ({}, PULL, ["no layer of channels_redis", "is empty"]),
        ({"a": {"BACKEND": "other.Layer"}}, PULL, ["'a' is other.Layer"]),
        ({"a": {"BACKEND": CORE, "CONFIG": ["x"]}}, PULL, ["layer 'a'", "must be a dict"]),
        ({"a": {"BACKEND": CORE}}, "localhost:1", ["--pull-address", "tcp://"]),
        ({"a": {"BACKEND": CORE}}, PUB, ["given twice"]),
    ],
)
def test_what_cannot_be_translated_says_why(layers: Any, pull: str, parts: list[str]) -> None:
    """Settings that cannot be translated raise an error that names the alias or the argument and the reason."""
    with pytest.raises(ToolError) as raised:
        translate(layers, pull, PUB)
    for part in parts:
        assert part in str(raised.value)


def test_nothing_in_a_key_leaves_its_comment() -> None:
    """No key of CONFIG can break out of its comment, because users paste the report into their settings."""
    layers = {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"a\nimport os": 1}}}
    assert all(line.startswith("#") and "\n" not in line for line in report(translate(layers, PULL, PUB)))
