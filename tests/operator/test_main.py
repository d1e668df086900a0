"""The operator's commands, as a user runs them."""

import asyncio
import io
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifests import NEWEST, NoSchema, load, problems

from channels_zmq_operator import __main__ as module
from channels_zmq_operator import __version__, crd, webhook
from channels_zmq_operator.__main__ import BAD_USAGE, FAILED, json_lines, main
from channels_zmq_operator.settings import PREFIX

LAYER = "apiVersion: channels-zmq.io/v1alpha1\nkind: ZmqChannelLayer\nmetadata: {name: chat}\n"


def test_crd_prints_the_definition(capsys: pytest.CaptureFixture[str]) -> None:
    """`crd` prints the CustomResourceDefinition as YAML that can be applied."""
    assert main(["crd"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == crd.crd()


def test_render_prints_what_a_layer_is_made_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`render` prints the valid objects of a layer, without a ServiceMonitor, since it knows of no cluster."""
    path = tmp_path / "layer.yaml"
    path.write_text(LAYER)
    assert main(["render", "-f", str(path)]) == 0
    found = load(capsys.readouterr().out)
    assert [one["kind"] for one in found][-1] == "ConfigMap"
    assert len(found) == 7
    for one in found:
        try:
            assert problems(one, NEWEST) == []
        except NoSchema:
            pytest.fail("without a cluster nobody knows of ServiceMonitors")


def test_render_reads_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`render -f -` reads standard input and uses the configured image; without CURVE it prints no keys."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(LAYER + "spec: {security: {curve: Disabled}}\n"))
    monkeypatch.setenv(f"{PREFIX}FORWARDER_IMAGE", "mine:5")
    assert main(["render", "-f", "-"]) == 0
    out = capsys.readouterr().out
    assert "mine:5" in out
    assert "SECRET_KEY" not in out
    assert "allowed-keys" not in out


@pytest.mark.parametrize(
    "text, said",
    [
        ("a: [", "while parsing"),
        ("", "not a ZmqChannelLayer"),
        ("[]", "not a ZmqChannelLayer"),
        ("text", "not a ZmqChannelLayer"),
        ("kind: ConfigMap\nmetadata: {name: x}\n", "not a ZmqChannelLayer"),
        ("kind: ZmqChannelLayer\n", "metadata.name is missing"),
        ("kind: ZmqChannelLayer\nmetadata: [a]\n", "metadata.name is missing"),
        (LAYER.replace("}", ", namespace: 5}"), "namespace"),
        ("kind: ZmqChannelLayer\nmetadata: {}\n", "metadata.name is missing"),
        ("kind: ZmqChannelLayer\nmetadata: {name: [1]}\n", "metadata.name is missing"),
        (LAYER + "spec: {layer: {capacity: 0}}\n", "spec.layer.capacity: "),
        (LAYER + "spec: text\n", "spec: "),
        (LAYER + "---\n" + LAYER, "expected a single document"),
        (None, "No such file"),
    ],
)
def test_render_says_what_is_wrong_with_a_file(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`render` reports an invalid file in one message on standard error, without a traceback, and exits with 2."""
    path = tmp_path / "layer.yaml"
    if text is not None:
        path.write_text(text)
    assert main(["render", "-f", str(path)]) == BAD_USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"channels-zmq-operator render: {path}: ")
    assert said in captured.err


def test_render_takes_no_binary_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`render` reports a file that is not text and exits with the code for bad usage."""
    path = tmp_path / "layer.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    assert main(["render", "-f", str(path)]) == BAD_USAGE
    assert "render: " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["render"]])
def test_wrong_arguments_are_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Invalid arguments print the usage on standard error and exit with the code for bad usage."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == BAD_USAGE
    assert "usage: channels-zmq-operator" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the version on standard output and exits with 0."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.fixture
def root_logger() -> Any:
    """Restore the handlers and the level of the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = handlers, level


@pytest.mark.usefixtures("root_logger")
def test_a_process_that_fails_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A process that fails logs the error in the format of its log, and exits with the code for failure."""

    async def serve(*_: Any) -> None:
        raise OSError("port in use")

    monkeypatch.setattr(webhook, "serve", serve)
    monkeypatch.setenv(f"{PREFIX}LOG_FORMAT", "json")
    monkeypatch.setattr(module, "_run", lambda work: asyncio.run(work(asyncio.Event())))
    assert main(["webhook"]) == FAILED
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert line["message"] == "stopped by an error: port in use"
    assert "Traceback" in line["exception"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_webhook_in_order(number: signal.Signals, tmp_path: Path, unused_tcp_port: int) -> None:
    """SIGTERM and SIGINT make a real webhook process exit with 0, and its log is JSON to the last line."""
    environment = {
        **os.environ,
        f"{PREFIX}LOG_FORMAT": "json",
        f"{PREFIX}CERTIFICATE_FOLDER": str(tmp_path),
        f"{PREFIX}ADMIN_PORT": str(unused_tcp_port),
    }
    program = (
        "import functools, sys; from channels_zmq_operator import __main__, webhook\n"
        "webhook.serve = functools.partial(webhook.serve, serve_on=0)\n"
        "sys.exit(__main__.main(['webhook']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process:
        first = json.loads(process.stderr.readline())
        assert first["message"].startswith("the certificate cannot be read, waiting for one")
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(20) == 0
    assert json.loads(rest.splitlines()[-1])["message"] == "stopping in 0 s"


def test_a_log_line_is_one_json_object() -> None:
    """A JSON log record is one line, also with newlines, a traceback and a lone surrogate in it."""
    try:
        raise ValueError("a\nb")
    except ValueError:
        record = logging.LogRecord("name", logging.ERROR, "", 1, "x %s", ("y\n\ud800",), sys.exc_info())
    text = json_lines().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert line["message"] == "x y\n\ud800"
    assert line["level"] == "ERROR"
    assert "ValueError" in line["exception"]
