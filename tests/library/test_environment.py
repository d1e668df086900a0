"""`CHANNEL_LAYERS` from environment variables."""

from typing import Any

import pytest

from channels_zmq.config import DedicatedConfig, parse
from channels_zmq.environment import DEDICATED, EMBEDDED, channel_layers_from_env
from channels_zmq.errors import ConfigurationError

ADDRESSES = {"pull_socket_address": "tcp://f:7001", "pub_socket_address": "tcp://f:7002"}
PULL, PUB = "CHANNELS_ZMQ_PULL_SOCKET_ADDRESS", "CHANNELS_ZMQ_PUB_SOCKET_ADDRESS"
VARIABLES = {PULL: "tcp://f:7001", PUB: "tcp://f:7002"}
KEY = "k" * 40


def env_refusal(environ: dict[str, str]) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        channel_layers_from_env(environ)
    return caught.value


def default_config(environ: dict[str, str]) -> dict[str, Any]:
    config: dict[str, Any] = channel_layers_from_env(environ)["default"]["CONFIG"]
    return config


@pytest.mark.parametrize("environ", [{}, {"HOME": "/"}, {"CHANNELS_ZMQ_CAPACITY": ""}])
def test_no_variable_gives_an_embedded_layer_for_one_process(environ: dict[str, str]) -> None:
    """Without a variable the layer is an embedded one for one process; an empty value counts as unset."""
    assert channel_layers_from_env(environ) == {"default": {"BACKEND": EMBEDDED, "CONFIG": {}}}


def test_a_pull_address_gives_a_dedicated_layer() -> None:
    """A pull address makes the layer a dedicated one, with the addresses in its CONFIG."""
    assert channel_layers_from_env(VARIABLES) == {"default": {"BACKEND": DEDICATED, "CONFIG": ADDRESSES}}


def test_an_alias_has_variables_of_its_own() -> None:
    """Each alias has its own variables, and the layers may be of different kinds."""
    environ = {
        "CHANNELS_ZMQ_CAPACITY": "5",
        "CHANNELS_ZMQ__JOBS__PULL_SOCKET_ADDRESS": "tcp://f:7001",
        "CHANNELS_ZMQ__JOBS__PUB_SOCKET_ADDRESS": "tcp://f:7002",
    }
    assert channel_layers_from_env(environ) == {
        "default": {"BACKEND": EMBEDDED, "CONFIG": {"capacity": 5}},
        "jobs": {"BACKEND": DEDICATED, "CONFIG": ADDRESSES},
    }


def test_an_alias_may_hold_an_underscore() -> None:
    """An alias may contain an underscore, because only two in a row end it."""
    assert channel_layers_from_env({"CHANNELS_ZMQ__MY_JOBS__MAX_MESSAGE_SIZE": "9"})["my_jobs"]["CONFIG"] == {
        "max_message_size": 9
    }


@pytest.mark.parametrize("variable", ["CHANNELS_ZMQ__JOBS", "CHANNELS_ZMQ__JOBS__", "CHANNELS_ZMQ___CAPACITY"])
def test_a_variable_without_alias_or_key_is_refused(variable: str) -> None:
    """A variable without an alias or a key raises an error that names the variable and shows the form."""
    error = env_refusal({variable: "5"})
    assert error.setting == variable
    assert "CHANNELS_ZMQ__<ALIAS>__<KEY>" in str(error)


@pytest.mark.parametrize(
    "variable, near",
    [
        ("CHANNELS_ZMQ_CAPCITY", "CHANNELS_ZMQ_CAPACITY"),
        ("CHANNELS_ZMQ__JOBS__EXPIRE", "CHANNELS_ZMQ__JOBS__EXPIRY"),
    ],
)
def test_a_misspelt_variable_is_told_the_nearest(variable: str, near: str) -> None:
    """A misspelt variable is never ignored: the error names it and suggests the most similar valid one."""
    error = env_refusal({variable: "5"})
    assert error.setting == variable
    assert str(error).endswith(f"did you mean {near}?")


def test_a_variable_of_the_dedicated_layer_alone_is_refused() -> None:
    """A variable for the dedicated layer only, without addresses, raises an error that names the missing variable."""
    error = env_refusal({"CHANNELS_ZMQ_OUTBOX_BYTES": "5"})
    assert error.setting == "CHANNELS_ZMQ_OUTBOX_BYTES"
    assert str(error).endswith(f"the dedicated layer, which needs {PULL}")


def test_a_variable_of_the_embedded_layer_is_refused_beside_the_addresses_of_forwarders() -> None:
    """A variable for the embedded layer only raises an error that names the variable that excludes it."""
    error = env_refusal({"CHANNELS_ZMQ_SUBSCRIBER_BYTES": "5000000", PULL: "tcp://f:7001", PUB: "tcp://f:7002"})
    assert error.setting == "CHANNELS_ZMQ_SUBSCRIBER_BYTES"
    assert str(error).endswith(f"the embedded layer, which excludes {PULL}")


def test_a_misspelt_pull_address_is_told_the_pull_address() -> None:
    """The error for a misspelt pull address suggests that variable, although without it the layer is embedded."""
    error = env_refusal({"CHANNELS_ZMQ_PULL_SOCKET_ADRESS": "tcp://f:7001", PUB: "tcp://f:7002"})
    assert str(error).endswith(f"did you mean {PULL}?")


def test_a_missing_variable_is_named() -> None:
    """If only one address is set, the error names the variable of the other."""
    assert PUB in str(env_refusal({PULL: "tcp://f:7001"}))


def test_the_forwarders_variables_are_its_own() -> None:
    """The layer ignores the variables of the forwarder, so that both may be in one environment."""
    assert default_config({"CHANNELS_ZMQ_FORWARDER_PULL_ADDRESS": "tcp://*:7001"}) == {}


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("capacity", "5", 5),
        ("max_message_size", "1000", 1000),
        ("prefetch", "0", 0),
        ("outbox_capacity", "7", 7),
        ("outbox_bytes", "8", 8),
        ("expiry", "1.5", 1.5),
        ("connect_timeout", "2", 2.0),
        ("linger", "0", 0.0),
        ("drop_rate", "0.5", 0.5),
        ("group_expiry", "60", 60.0),
        ("group_expiry", "none", None),
        ("group_expiry", "None", None),
        ("serializer", "json", "json"),
        ("on_disconnect", "zmq.gone", "zmq.gone"),
        ("on_reconnect", "5", "5"),
        ("channel_capacity", '{"b*": 5, "a*": 6}', {"b*": 5, "a*": 6}),
    ],
)
def test_a_value_becomes_what_its_key_holds(key: str, text: str, value: str | float | dict[str, int] | None) -> None:
    """A variable becomes the type of its key: an integer, a float, a string, None, or a dict from a JSON object."""
    config = default_config({**VARIABLES, f"CHANNELS_ZMQ_{key.upper()}": text})
    assert config == {**ADDRESSES, key: value}
    assert type(config[key]) is type(value)


@pytest.mark.parametrize(
    "variable, text",
    [
        ("CHANNELS_ZMQ_CAPACITY", "many"),
        ("CHANNELS_ZMQ_CAPACITY", "1.5"),
        ("CHANNELS_ZMQ_CAPACITY", "-1"),
        ("CHANNELS_ZMQ_EXPIRY", "soon"),
        ("CHANNELS_ZMQ_EXPIRY", "nan"),
        ("CHANNELS_ZMQ_GROUP_EXPIRY", "never"),
        ("CHANNELS_ZMQ_OUTBOX_BYTES", "64M"),
        ("CHANNELS_ZMQ__JOBS__CAPACITY", "0"),
        ("CHANNELS_ZMQ__JOBS__LINGER", "x"),
        ("CHANNELS_ZMQ_CHANNEL_CAPACITY", "{"),
        ("CHANNELS_ZMQ_CHANNEL_CAPACITY", "5"),
        ("CHANNELS_ZMQ_CHANNEL_CAPACITY", '{"a": 0}'),
        (PUB, "f:7002"),
    ],
)
def test_a_value_that_cannot_be_used_names_its_variable(variable: str, text: str) -> None:
    """The error for an invalid value names the variable and not the key of CONFIG, which the environment lacks."""
    assert env_refusal({**VARIABLES, variable: text}).setting == variable


def test_capacities_in_a_json_list_name_their_variable() -> None:
    """Capacities as a JSON list raise an error that names the variable, which must contain a JSON object."""
    assert env_refusal({"CHANNELS_ZMQ_CHANNEL_CAPACITY": "[1]"}).setting == "CHANNELS_ZMQ_CHANNEL_CAPACITY"


def test_a_layer_made_from_variables_is_valid() -> None:
    """The CONFIG that is built from variables passes the validation of its layer."""
    layer = channel_layers_from_env({**VARIABLES, "CHANNELS_ZMQ_CHANNEL_CAPACITY": '{"a*": 5}'})["default"]
    assert parse(DedicatedConfig, layer["CONFIG"]).channel_capacity == {"a*": 5}


def test_the_variables_of_the_process_are_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument the process's own environment is read, so that settings need a single call."""
    monkeypatch.setenv("CHANNELS_ZMQ_CAPACITY", "5")
    assert channel_layers_from_env()["default"]["CONFIG"]["capacity"] == 5


def test_an_invalid_number_is_explained_beside_its_variable() -> None:
    """The error for an invalid number shows the value and the expected type beside the variable."""
    error = env_refusal({"CHANNELS_ZMQ_CAPACITY": "1.5"})
    assert str(error).startswith("CHANNELS_ZMQ_CAPACITY: Input should be a valid integer")
    assert str(error).endswith("(it is '1.5')")


def test_a_secret_is_plain_text_in_config_and_hidden_in_errors() -> None:
    """A secret key is plain text in CONFIG, as a user would write it, and no error shows it."""
    variables = {**VARIABLES, "CHANNELS_ZMQ_CURVE_SECRET_KEY": KEY}
    assert default_config({**variables, "CHANNELS_ZMQ_CURVE_SERVER_KEY": KEY})["curve_secret_key"] == KEY
    error = env_refusal(variables)
    assert error.setting == "CHANNELS_ZMQ_*"
    assert KEY not in str(error)


def test_allowed_keys_become_a_tuple() -> None:
    """The variable of allowed keys separates them by commas, and CONFIG gets a tuple."""
    environ = {
        PUB: "tcp://127.0.0.1:5556",
        "CHANNELS_ZMQ_CURVE_SERVER_KEY": KEY,
        "CHANNELS_ZMQ_CURVE_SERVER_SECRET_KEY": KEY,
        "CHANNELS_ZMQ_CURVE_ALLOWED_KEYS": f"{KEY}, {'j' * 40}",
    }
    assert default_config(environ)["curve_allowed_keys"] == (KEY, "j" * 40)


def test_encryption_keys_are_a_list() -> None:
    """The variable of encryption keys separates them by commas, and CONFIG gets a list, also of a single key."""
    for value, keys in ((f"{KEY}, {'j' * 40}", [KEY, "j" * 40]), (KEY, [KEY])):
        assert default_config({"CHANNELS_ZMQ_SYMMETRIC_ENCRYPTION_KEYS": value})["symmetric_encryption_keys"] == keys
    config = default_config({"CHANNELS_ZMQ_SYMMETRIC_ENCRYPTION_KEYS_FILE": "/run/secrets/keys"})
    assert config["symmetric_encryption_keys_file"] == "/run/secrets/keys"


@pytest.mark.parametrize("value", ["\n", " , "])
def test_encryption_keys_without_a_key_are_refused(value: str) -> None:
    """A variable of encryption keys without a key is refused: an empty line in a Secret would disable encryption."""
    error = env_refusal({"CHANNELS_ZMQ_SYMMETRIC_ENCRYPTION_KEYS": value})
    assert error.setting == "CHANNELS_ZMQ_SYMMETRIC_ENCRYPTION_KEYS"
    assert "has no key" in str(error)


def test_an_error_about_encryption_keys_names_the_variable_and_no_key() -> None:
    """An error about encryption keys names the variable and shows no key, not even one that is too short."""
    error = env_refusal({"CHANNELS_ZMQ_SYMMETRIC_ENCRYPTION_KEYS": f"{KEY},too-short"})
    assert error.setting == "CHANNELS_ZMQ_SYMMETRIC_ENCRYPTION_KEYS"
    assert "at least 16" in str(error)
    assert KEY not in str(error)
    assert "too-short" not in str(error)


OPTIONS = "CHANNELS_ZMQ_OPTIONS"


def test_options_are_further_keys_of_config() -> None:
    """OPTIONS, which each alias has, contains further keys of CONFIG; the separate variable of a key overrides it."""
    config = default_config(
        {**VARIABLES, OPTIONS: '{"capacity": 7, "group_expiry": null, "channel_capacity": {"a*": 5}}'}
    )
    assert config == {**ADDRESSES, "capacity": 7, "group_expiry": None, "channel_capacity": {"a*": 5}}
    assert default_config({OPTIONS: '{"capacity": 7}', "CHANNELS_ZMQ_CAPACITY": "8"}) == {"capacity": 8}
    layers = channel_layers_from_env({"CHANNELS_ZMQ__JOBS__OPTIONS": '{"capacity": 7}'})
    assert layers["jobs"]["CONFIG"] == {"capacity": 7}
    assert layers["default"]["CONFIG"] == {}


def test_options_of_a_newer_operator_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """Unknown options, as from a newer operator, are ignored with a log line that names them."""
    assert default_config({OPTIONS: '{"capacity": 7, "colour": "red"}'}) == {"capacity": 7}
    assert f"ignoring {OPTIONS}['colour']" in caplog.text


@pytest.mark.parametrize(
    "text, setting, said",
    [
        ("{", OPTIONS, "invalid JSON object"),
        ("[1]", OPTIONS, "must be a JSON object"),
        ('{"capacity": 0}', f"{OPTIONS}['capacity']", "greater than or equal to 1"),
        ('{"channel_capacity": {"a": "x"}}', f"{OPTIONS}['channel_capacity']['a']", "valid integer"),
        ('{"curve_server_key": "k"}', f"{OPTIONS}['curve_server_key']", "separate variables"),
        ('{"symmetric_encryption_keys": []}', f"{OPTIONS}['symmetric_encryption_keys']", "separate variables"),
        ('{"pull_socket_address": "tcp://f:1"}', f"{OPTIONS}['pull_socket_address']", "separate variables"),
    ],
)
def test_bad_options_are_named(text: str, setting: str, said: str) -> None:
    """Invalid options raise an error that names the option; addresses and keys need separate variables."""
    error = env_refusal({OPTIONS: text})
    assert error.setting == setting
    assert said in str(error)
