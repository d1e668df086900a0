"""What `helm test` runs, against real forwarders."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq
from forwarders import Forwarder, free_ports

from channels_zmq_forwarder import selftest


def run(variables: dict[str, str], *, seconds: float = 20) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CHANNELS_ZMQ")} | variables
    command = [sys.executable, "-m", "channels_zmq_forwarder", "selftest", f"--timeout={seconds}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def addresses() -> tuple[str, str]:
    pull, pub = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    return pull, pub


def variables(pull: str, pub: str, **more: str) -> dict[str, str]:
    return {
        f"CHANNELS_ZMQ_{key}": value
        for key, value in {"PULL_SOCKET_ADDRESS": pull, "PUB_SOCKET_ADDRESS": pub, **more}.items()
    }


def test_messages_come_back() -> None:
    """By a forwarder that starts only after the script: it asks until there is one."""
    pull, pub = addresses()
    forwarder = Forwarder(pull, pub)
    try:
        forwarder.start(wait=False)
        done = run(variables(pull, pub))
    finally:
        forwarder.kill()
    assert done.returncode == 0, done.stderr
    assert "100 messages came back, unchanged and in order" in done.stdout
    assert "without CURVE" in done.stdout


def test_messages_come_back_with_curve(tmp_path: Path) -> None:
    """With the keys as the layer's ConfigMap and Secrets have them; a stranger's key gets no answer and says so."""
    (server_public, server_secret), (public, secret), (_, foreign) = (zmq.curve_keypair() for _ in range(3))
    for name, content in (
        ("server.public", server_public),
        ("server", server_secret),
        ("allowed", public),
        ("client", secret),
        ("foreign", foreign),
    ):
        (tmp_path / name).write_bytes(content + b"\n")
        (tmp_path / name).chmod(0o600)
    pull, pub = addresses()
    flags = (
        "--curve-secret-key-file",
        str(tmp_path / "server"),
        "--curve-allowed-keys-file",
        str(tmp_path / "allowed"),
    )
    forwarder = Forwarder(pull, pub, flags=flags)
    try:
        forwarder.start()
        files = {"SERVER": "server.public", "SECRET": "client"}
        keys = {f"CURVE_{key}_KEY_FILE": str(tmp_path / name) for key, name in files.items()}
        done = run(variables(pull, pub, **keys))
        stranger = run(variables(pull, pub, **{**keys, "CURVE_SECRET_KEY_FILE": str(tmp_path / "foreign")}), seconds=3)
    finally:
        forwarder.kill()
    assert done.returncode == 0, done.stderr
    assert "with CURVE" in done.stdout
    assert stranger.returncode == 1
    assert "no answer to b'H'" in stranger.stderr


def test_nobody_there_is_a_failure() -> None:
    """With a sentence about what to look at."""
    done = run(variables(*addresses()), seconds=1)
    assert done.returncode == 1
    assert "is the layer ready" in done.stderr


def test_a_key_that_never_comes_is_a_failure(tmp_path: Path) -> None:
    """The volume is optional, so the pod starts without it."""
    missing, server = tmp_path / "secret-key", tmp_path / "server-key"
    server.write_bytes(zmq.curve_keypair()[0])
    keys = {"CURVE_SERVER_KEY_FILE": str(server), "CURVE_SECRET_KEY_FILE": str(missing)}
    done = run(variables(*addresses(), **keys), seconds=1)
    assert done.returncode == 1
    assert f"there is no {missing}" in done.stderr


@pytest.mark.parametrize(
    ("server", "secret", "problem"),
    [("", "k" * 40, "are needed both"), ("short", "k" * 40, "holds no key"), ("\x00" * 40, "k" * 40, "holds no key")],
)
def test_what_is_no_pair_of_keys_is_a_failure(tmp_path: Path, server: str, secret: str, problem: str) -> None:
    """That names the file, or what is missing."""
    given = {}
    for key, content in (("SERVER", server), ("SECRET", secret)):
        if content:
            (tmp_path / key).write_text(content)
            given[f"CURVE_{key}_KEY_FILE"] = str(tmp_path / key)
    done = run(variables(*addresses(), **given), seconds=1)
    assert done.returncode == 1
    assert problem in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_variables_it_says_which_one_is_missing() -> None:
    """And what gives them to a pod."""
    done = run({})
    assert done.returncode == 1
    assert "CHANNELS_ZMQ_PULL_SOCKET_ADDRESS is not set: has the pod the label of a layer?" in done.stderr


def test_a_name_that_is_not_known_is_a_failure() -> None:
    """After it has waited for it."""
    done = run(variables("tcp://no.such.host.invalid:1", "tcp://no.such.host.invalid:2"), seconds=1)
    assert done.returncode == 1
    assert "cannot resolve tcp://no.such.host.invalid:1" in done.stderr


def test_every_forwarder_of_a_name_is_tested(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By itself: a message that is sent by one does not come back by another."""
    pairs = [addresses(), addresses()]
    monkeypatch.setattr(selftest, "resolve_pairs", lambda pull, pub: pairs)
    forwarders = [Forwarder(*pair) for pair in pairs]
    try:
        for forwarder in forwarders:
            forwarder.start()
        selftest.run(variables("tcp://layer:1", "tcp://layer:2"), 10, time.monotonic() + 20)
        assert "forwarder 2 of 2" in capsys.readouterr().out
        forwarders[1].kill()
        with pytest.raises(selftest.SelftestError, match="no answer"):
            selftest.run(variables("tcp://layer:1", "tcp://layer:2"), 10, time.monotonic() + 2)
        assert "10 messages came back" in capsys.readouterr().out
    finally:
        for forwarder in forwarders:
            forwarder.kill()
