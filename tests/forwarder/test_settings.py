"""The forwarder's flags and environment variables."""

from typing import Any

import pytest

from channels_zmq_forwarder.settings import PREFIX, Settings, SettingsError, parse


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the forwarder's variables of the developer from the environment."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"{PREFIX}{name.upper()}", raising=False)


def test_without_settings_a_forwarder_binds_loopback_addresses() -> None:
    """Without settings a forwarder binds loopback addresses, since other interfaces are a decision of the user."""
    settings = parse([])
    addresses = [*settings.pull_address, *settings.pub_address, f"tcp://{settings.admin_address}"]
    assert addresses == ["tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556", "tcp://127.0.0.1:9600"]


def test_a_flag_wins_over_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag overrides the variable of a deployment."""
    monkeypatch.setenv(f"{PREFIX}QUEUE_NAMES", "5")
    monkeypatch.setenv(f"{PREFIX}SETTLE", "0.1")
    settings = parse(["--queue-names", "7"])
    assert settings.queue_names == 7
    assert settings.settle == 0.1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--pull-address", "tcp://*:1,ipc:///tmp/a"],
        ["--pull-address", "tcp://*:1", "--pull-address", "ipc:///tmp/a"],
        ["--pull-address=tcp://*:1 , ipc:///tmp/a,"],
    ],
)
def test_there_may_be_several_addresses(arguments: list[str]) -> None:
    """Several addresses may be given by repeated flags, or separated by commas."""
    assert parse(arguments).pull_address == ["tcp://*:1", "ipc:///tmp/a"]


def test_addresses_in_a_variable_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable contains several addresses, separated by commas."""
    monkeypatch.setenv(f"{PREFIX}PUB_ADDRESS", "tcp://*:1, tcp://*:2")
    assert parse([]).pub_address == ["tcp://*:1", "tcp://*:2"]


def test_sizes_have_units() -> None:
    """A size may have a decimal or a binary unit."""
    settings = parse(["--max-message-size", "2MiB", "--queue-bytes", "1GB", "--memory-limit", "512MiB"])
    assert (settings.max_message_size, settings.queue_bytes) == (2 * 2**20, 10**9)
    assert settings.memory_limit == 512 * 2**20


@pytest.mark.parametrize("address", ["127.0.0.1:9600", "[::1]:9600", "*:9600", "localhost:0"])
def test_the_admin_page_has_a_host_and_a_port(address: str) -> None:
    """The admin address is a host and a port, with IPv6 addresses in brackets and `*` for all interfaces."""
    assert parse(["--admin-address", address]).admin_address == address


def test_the_admin_page_can_be_off() -> None:
    """An empty admin address is valid and disables the endpoints."""
    assert parse(["--admin-address", ""]).admin_address == ""


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        ([], "127.0.0.1:9600"),
        (["--admin-address", "[::1]:9700"], "[::1]:9700"),
        (["--admin-address", "*:9600"], "127.0.0.1:9601"),
        (["--admin-address", "10.0.0.1:9600"], "127.0.0.1:9601"),
        (["--admin-address", ""], ""),
        (["--admin-address", "*:9600", "--status-address", "*:9600"], "*:9600"),
        (["--status-address", "localhost:9700"], "localhost:9700"),
        (["--status-address", ""], ""),
    ],
)
def test_names_leave_the_machine_only_if_that_is_asked_for(arguments: list[str], address: str) -> None:
    """The status page follows the admin address only as long as that is a loopback address."""
    assert parse(arguments).status_page_address == address


def test_levels_are_read_in_any_case() -> None:
    """A log level is accepted in any case, since users type `--log-level debug`."""
    assert parse(["--log-level", "debug"]).log_level == "DEBUG"


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--pull-address", "udp://x"], "--pull-address (CHANNELS_ZMQ_FORWARDER_PULL_ADDRESS): 'udp://x' is neither"),
        (["--pub-address", ","], "--pub-address (CHANNELS_ZMQ_FORWARDER_PUB_ADDRESS): at least one address is needed"),
        (
            ["--admin-address", "9600"],
            "--admin-address (CHANNELS_ZMQ_FORWARDER_ADMIN_ADDRESS): '9600' is not HOST:PORT",
        ),
        (["--status-address", "9601"], "--status-address (CHANNELS_ZMQ_FORWARDER_STATUS_ADDRESS): '9601' is not HOST"),
        (["--admin-address", "a:65536"], "'a:65536' is not HOST:PORT"),
        (["--admin-address", "::1:9600"], "write an IPv6 address in brackets"),
        (["--queue-bytes", "many"], "--queue-bytes (CHANNELS_ZMQ_FORWARDER_QUEUE_BYTES): "),
        (["--settle", "6"], "settle-at-most (5.0) is less than settle (6.0)"),
        (["--settle-at-most", "inf"], "--settle-at-most "),
        (["--pub-high-water-mark", str(2**31)], "--pub-high-water-mark "),
        (["--max-message-size", str(2**63)], "--max-message-size "),
        (["--memory-limit", "-1"], "--memory-limit "),
        (["--log-level", "loud"], "--log-level "),
    ],
)
def test_invalid_settings_are_named(arguments: list[str], sentence: str) -> None:
    """The error for an invalid setting names the flag, the variable and the reason."""
    with pytest.raises(SettingsError) as caught:
        parse(arguments)
    assert sentence in str(caught.value)


def test_all_mistakes_are_named_at_once() -> None:
    """One error names all invalid settings, so that users can correct them in one step."""
    with pytest.raises(SettingsError, match=r"--queue-names .*; --settle "):
        parse(["--queue-names", "0", "--settle", "-1"])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--curve-secret-kee=hidden"], "--curve-secret-kee is not a flag; did you mean --curve-secret-key?"),
        (["--curve-secret-kee", "hidden"], "--curve-secret-kee is not a flag; did you mean --curve-secret-key?"),
        (["--xyz", "hidden"], "--xyz is not a flag; flags and commands are listed by --help"),
        (["--settle", "1", "hidden"], "argument 3 is not a flag; flags and commands are listed by --help"),
    ],
)
def test_an_unknown_flag_is_named_without_its_value(arguments: list[str], error: str) -> None:
    """The error for an unknown flag names it without its value, which may be a secret key."""
    with pytest.raises(SettingsError) as caught:
        parse(arguments)
    assert str(caught.value) == error


def test_help_lists_all_flags(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` lists all flags and exits with 0."""
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in Settings.model_fields)


def test_every_setting_is_described() -> None:
    """Every setting has a description, which `--help` and the README show."""
    assert all(field.description for field in Settings.model_fields.values())


def test_settings_do_not_change() -> None:
    """Settings are parsed once and frozen."""
    settings: Any = parse([])
    with pytest.raises(ValueError, match="frozen"):
        settings.queue_names = 1


@pytest.mark.parametrize("begins", ["{", "[", "a"])
def test_allowed_keys_may_begin_with_any_character(begins: str) -> None:
    """An allowed key may begin with any character of Z85, even one that begins a list or an object of JSON."""
    keys = [begins + "0" * 39, "1" * 39 + "]"]
    given = parse([f"--curve-secret-key={'k' * 40}", f"--curve-allowed-keys={keys[0]}, {keys[1]}"])
    assert given.allowed_keys == keys


def test_allowed_keys_are_given_by_one_flag() -> None:
    """A second flag with allowed keys is refused, since some keys would not count otherwise.

    Of other flags the last one counts, and addresses may be given one by one.
    """
    with pytest.raises(SettingsError, match="--curve-allowed-keys is given twice: separate the keys by commas"):
        parse(["--curve-allowed-keys=1", "--curve-allowed-keys=2"])
    given = parse(
        ["--pull-address=tcp://127.0.0.1:1", "--settle=1", "--pull-address", "tcp://127.0.0.1:2", "--settle=2"]
    )
    assert (given.pull_address, given.settle) == (["tcp://127.0.0.1:1", "tcp://127.0.0.1:2"], 2)
