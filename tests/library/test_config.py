"""The settings that CONFIG accepts."""

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from pydantic import ValidationError

from channels_zmq.config import DedicatedConfig, EmbeddedConfig, parse
from channels_zmq.errors import ConfigurationError

ADDRESSES = {"pull_socket_address": "tcp://f:7001", "pub_socket_address": "tcp://f:7002"}


def refusal(model: type[DedicatedConfig | EmbeddedConfig], config: dict[str, Any]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        parse(model, config)
    return caught.value


def test_the_embedded_layer_needs_no_key() -> None:
    """The embedded layer needs no setting, and has the defaults of Channels for capacity and expiry."""
    config = parse(EmbeddedConfig, {})
    assert (config.capacity, config.expiry, config.group_expiry) == (100, 60.0, 86400.0)
    assert config.pub_socket_address == "inproc://channels"


@pytest.mark.parametrize("missing", list(ADDRESSES))
def test_the_dedicated_layer_needs_both_addresses(missing: str) -> None:
    """The dedicated layer requires both addresses, and the error names the missing one."""
    config = {key: value for key, value in ADDRESSES.items() if key != missing}
    assert refusal(DedicatedConfig, config).setting == f"CONFIG[{missing!r}]"


def test_settings_do_not_change() -> None:
    """Parsed settings are immutable."""
    config: Any = parse(EmbeddedConfig, {})
    with pytest.raises(ValidationError):
        config.capacity = 5


@pytest.mark.parametrize(
    "model, key, near",
    [
        (EmbeddedConfig, "capcity", "capacity"),
        (EmbeddedConfig, "groupexpiry", "group_expiry"),
        (DedicatedConfig, "pub_adress", "pub_socket_address"),
        (DedicatedConfig, "outbox_capacty", "outbox_capacity"),
    ],
)
def test_an_unknown_key_is_told_the_nearest(model: type[DedicatedConfig | EmbeddedConfig], key: str, near: str) -> None:
    """An unknown key is never ignored: the error names it and suggests the most similar valid key."""
    error = refusal(model, {key: 1})
    assert error.setting == f"CONFIG[{key!r}]"
    assert str(error).endswith(f"unknown key; did you mean {near!r}?")


def test_a_key_that_is_near_to_none_is_told_all() -> None:
    """If no valid key is similar to an unknown one, the error lists all valid keys."""
    assert "the keys are capacity, channel_capacity, " in str(refusal(EmbeddedConfig, {"zzzzzz": 1}))


def test_a_configuration_error_is_djangos_own() -> None:
    """A configuration error is an ImproperlyConfigured, which `manage.py` shows without a traceback."""
    assert isinstance(refusal(EmbeddedConfig, {"zzzzzz": 1}), ImproperlyConfigured)


@pytest.mark.parametrize(
    "key, value",
    [
        ("capacity", -1),
        ("capacity", 0),
        ("capacity", 1.5),
        ("capacity", None),
        ("capacity", 2**31),
        ("capacity", sys.maxsize),
        ("expiry", 0),
        ("expiry", -1),
        ("expiry", 0.0004),
        ("expiry", float("inf")),
        ("expiry", float("nan")),
        ("expiry", "soon"),
        ("group_expiry", 0),
        ("group_expiry", 0.0009),
        ("group_expiry", float("nan")),
        ("max_message_size", 0),
        ("connect_timeout", 0),
        ("connect_timeout", 0.0009),
        ("linger", -1),
        ("prefetch", -1),
        ("drop_rate", 1.1),
        ("on_disconnect", ""),
        ("serializer", None),
        ("pub_socket_address", 5),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(key: str, value: str | float | None) -> None:
    """An invalid value raises an error that names the key and shows the value."""
    error = refusal(EmbeddedConfig, {key: value})
    assert error.setting == f"CONFIG[{key!r}]"
    assert str(error).endswith(f"(it is {value!r})")


@pytest.mark.parametrize(
    "key, value", [("capacity", 2**31 - 1), ("expiry", 0.001), ("connect_timeout", 0.001), ("group_expiry", 0.001)]
)
def test_the_bounds_themselves_are_allowed(key: str, value: float) -> None:
    """The bounds themselves are valid; frames hold a capacity in 32 bits and a duration in whole milliseconds."""
    assert getattr(parse(EmbeddedConfig, {key: value}), key) == value


def test_no_group_expiry_is_allowed() -> None:
    """A group expiry of None is valid, and means that memberships never expire."""
    assert parse(EmbeddedConfig, {"group_expiry": None}).group_expiry is None


@pytest.mark.parametrize("value", [float("inf"), 1e17])
def test_a_group_expiry_that_no_frame_can_carry_is_refused(value: float) -> None:
    """A group expiry beyond 64 bits of milliseconds is refused, because no frame can carry it."""
    assert refusal(EmbeddedConfig, {"group_expiry": value}).setting == "CONFIG['group_expiry']"


@pytest.mark.parametrize("pattern", ["websocket.*", re.compile("^websocket")])
def test_capacities_go_by_glob_or_compiled_pattern(pattern: str | re.Pattern[str]) -> None:
    """The key of a capacity is a glob or a compiled pattern, as in Channels."""
    assert parse(EmbeddedConfig, {"channel_capacity": {pattern: 5}}).channel_capacity == {pattern: 5}


def test_capacities_may_be_pairs() -> None:
    """Capacities may be a list of pairs, whose order is kept because the first matching pattern applies."""
    pairs = [("b*", 1), ("a*", 2)]
    assert list(parse(EmbeddedConfig, {"channel_capacity": pairs}).channel_capacity.items()) == pairs


@pytest.mark.parametrize("value", [5, "a", ["abc"], [1, 2], [None], {"a": 0}, {"a": 2**31}, {"a": "x"}, {5: 5}])
def test_capacities_of_another_form_are_refused(value: object) -> None:
    """Malformed capacities raise an error that names the key."""
    assert refusal(EmbeddedConfig, {"channel_capacity": value}).setting.startswith("CONFIG['channel_capacity']")


@pytest.mark.parametrize(
    "address",
    [
        "tcp://f:1",
        "tcp://*:65535",
        "tcp://10.0.0.1:7001",
        "tcp://[::1]:5555",
        "tcp://[::]:5555",
        "tcp://[2001:db8::17]:5555",
        "tcp://[fe80::1%eth0]:5555",
        "tcp://[::ffff:10.0.0.1]:5555",
        "ipc:///run/f.sock",
        "ipc://@f",
    ],
)
def test_a_tcp_or_ipc_address_is_taken_as_it_is(address: str) -> None:
    """Both layers accept a valid TCP or IPC address unchanged."""
    assert parse(EmbeddedConfig, {"pub_socket_address": address}).pub_socket_address == address
    assert parse(DedicatedConfig, {**ADDRESSES, "pub_socket_address": address}).pub_socket_address == (address,)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost:7001",
        "udp://f:1",
        "tcp://f",
        "tcp://f:",
        "tcp://:1",
        "tcp://f:0",
        "tcp://f:65536",
        "tcp://f:http",
        "tcp://f:1/x",
        "tcp://f:1\n",
        "tcp://::1:5",
        "tcp://[::1]",
        "tcp://[::1]:",
        "tcp://[::1]:0",
        "tcp://[::1:5",
        "tcp://::1]:5",
        "tcp://[]:5",
        "tcp://[[::1]]:5",
        "tcp://[::1]x:5",
        "tcp://[f]:5",
        "tcp://[10.0.0.1]:5",
        "tcp://[*]:5",
        "ipc://",
        "ipc://" + "x" * 100,
    ],
)
@pytest.mark.parametrize("key", list(ADDRESSES))
def test_an_address_that_cannot_be_used_is_refused(key: str, address: str) -> None:
    """An invalid address raises an error that names the key and shows the address."""
    error = refusal(DedicatedConfig, {**ADDRESSES, key: address})
    assert error.setting == f"CONFIG[{key!r}]"
    assert repr(address) in str(error)


@pytest.mark.parametrize("address", ["tcp://::1:5555", "tcp://[::1:5555", "tcp://::1]:5555"])
def test_an_ipv6_address_without_its_brackets_is_shown_with_them(address: str) -> None:
    """The error for an IPv6 address without brackets contains the address with brackets."""
    error = refusal(DedicatedConfig, {**ADDRESSES, "pub_socket_address": address})
    assert str(error).endswith("put brackets around an IPv6 address: tcp://[::1]:5555")


def test_brackets_around_a_host_name_are_explained() -> None:
    """The error for a host name in brackets explains that only IPv6 addresses have brackets."""
    error = refusal(DedicatedConfig, {**ADDRESSES, "pub_socket_address": "tcp://[f]:5555"})
    assert str(error).endswith("'f' is not an IPv6 address, and brackets are only for these")


@pytest.mark.parametrize("key", list(ADDRESSES))
def test_the_dedicated_layer_refuses_inproc(key: str) -> None:
    """The dedicated layer refuses an inproc address, with an error that names the layer for it."""
    error = refusal(DedicatedConfig, {**ADDRESSES, key: "inproc://x"})
    assert error.setting == f"CONFIG[{key!r}]"
    assert "EmbeddedZmqChannelLayer" in str(error)


@pytest.mark.parametrize("listed", [list, tuple])
def test_a_list_of_one_address_is_an_address(listed: Callable[[list[Any]], Any]) -> None:
    """A list of one address equals the address itself, so that settings for several forwarders need no other form."""
    config = parse(DedicatedConfig, {key: listed([value]) for key, value in ADDRESSES.items()})
    assert config == parse(DedicatedConfig, ADDRESSES)


def test_lists_of_unequal_length_are_refused() -> None:
    """Lists of addresses of unequal length raise an error with both keys and both lengths."""
    error = refusal(DedicatedConfig, {**ADDRESSES, "pull_socket_address": ["tcp://a:1", "tcp://b:1"]})
    assert "pull_socket_address has 2 addresses and pub_socket_address 1" in str(error)


@pytest.mark.parametrize("form", [list, tuple, ", ".join, ",".join])
def test_several_forwarders_are_pairs_of_addresses(form: Callable[[list[str]], Any]) -> None:
    """Several forwarders are pairs of addresses, from two lists or from two strings with commas."""
    config = parse(
        DedicatedConfig,
        {
            "pull_socket_address": form(["tcp://a:1", "tcp://b:1"]),
            "pub_socket_address": form(["tcp://a:2", "tcp://b:2"]),
        },
    )
    assert config.forwarders == [("tcp://a:1", "tcp://a:2"), ("tcp://b:1", "tcp://b:2")]


@pytest.mark.parametrize("value", [[], ["tcp://a:1", ""], "tcp://a:1,", ["tcp://a:1", 5]])
def test_a_list_without_an_address_in_each_place_is_refused(value: str | list[str | int]) -> None:
    """A list with an empty or invalid address raises an error that names the key."""
    error = refusal(DedicatedConfig, {**ADDRESSES, "pull_socket_address": value})
    assert error.setting.startswith("CONFIG['pull_socket_address']")


@pytest.mark.parametrize("pull", [["tcp://a:2"], ["tcp://a:1", "tcp://a:1"], ["tcp://b:2", "tcp://a:1"]])
def test_an_address_that_is_given_twice_is_refused(pull: list[str]) -> None:
    """An address that occurs twice is refused: a forwarder has two ports, and shares neither with another forwarder."""
    pub = ["tcp://a:2", "tcp://b:2"][: len(pull)]
    error = refusal(DedicatedConfig, {"pull_socket_address": pull, "pub_socket_address": pub})
    assert "is given twice" in str(error)


KEY = "k" * 40
TCP = {"pub_socket_address": "tcp://127.0.0.1:5556"}


@pytest.mark.parametrize(
    "model, given, said",
    [
        (DedicatedConfig, {"curve_server_key": KEY, "curve_server_key_file": "f"}, "are both given"),
        (DedicatedConfig, {"curve_secret_key": KEY}, "needs curve_server_key"),
        (EmbeddedConfig, {"curve_server_key": KEY}, "takes no curve_ settings"),
        (EmbeddedConfig, {**TCP, "curve_server_secret_key": KEY}, "needs curve_server_key"),
        (EmbeddedConfig, {**TCP, "curve_server_key": KEY, "curve_allowed_keys": KEY}, "needs curve_server_secret_key"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(
    model: type[DedicatedConfig | EmbeddedConfig], given: dict[str, str], said: str
) -> None:
    """CURVE settings that do not fit together raise an error that names the missing or excess one and shows no key."""
    needed = {"pull_socket_address": "tcp://127.0.0.1:5555", **TCP} if model is DedicatedConfig else {}
    with pytest.raises(ValidationError, match=said) as caught:
        model(**needed, **given)
    assert KEY not in str(caught.value)


def test_allowed_keys_may_be_one_text_with_commas() -> None:
    """Allowed keys may be one string with commas, as in an environment variable."""
    whole = EmbeddedConfig(
        **TCP, curve_server_key=KEY, curve_server_secret_key=KEY, curve_allowed_keys=f"{KEY}, {'j' * 40},"
    )
    assert whole.curve_allowed_keys == (KEY, "j" * 40)


@pytest.mark.parametrize("keys", [[KEY], (KEY,), [KEY.encode()]])
def test_encryption_keys_are_a_list_of_text_or_bytes(keys: list[str | bytes] | tuple[str]) -> None:
    """Encryption keys are strings, as in a variable, or bytes, as from `Fernet.generate_key()`, and are never shown."""
    config = EmbeddedConfig(symmetric_encryption_keys=keys)
    assert [key.get_secret_value() for key in config.symmetric_encryption_keys] == [KEY.encode()]
    assert config.encrypts
    assert KEY not in repr(config)


def test_without_encryption_keys_nothing_is_encrypted() -> None:
    """A layer encrypts if it has keys or a file of keys; an empty list means that it has none."""
    assert not EmbeddedConfig().encrypts
    assert not EmbeddedConfig(symmetric_encryption_keys=[]).encrypts
    assert EmbeddedConfig(symmetric_encryption_keys_file="keys").encrypts


@pytest.mark.parametrize(
    "given, said",
    [
        ({"symmetric_encryption_keys": KEY}, "a list of keys is needed"),
        ({"symmetric_encryption_keys": [KEY, "too-short"]}, "at least 16 random characters"),
        ({"symmetric_encryption_keys": [KEY, ""]}, "at least 16 random characters"),
        ({"symmetric_encryption_keys": [KEY, 5]}, "valid"),
        ({"symmetric_encryption_keys": {KEY: "too-short"}}, "a list of keys is needed"),
        ({"symmetric_encryption_keys": [KEY], "symmetric_encryption_keys_file": "f"}, "are both given"),
    ],
)
def test_an_error_about_encryption_keys_never_contains_one(
    given: dict[str, str | list[str | int] | dict[str, str]], said: str
) -> None:
    """An error about encryption keys shows no key, not even one that is too short."""
    error = refusal(EmbeddedConfig, given)
    assert said in str(error)
    assert KEY not in str(error)
    assert "too-short" not in str(error)
