"""`manage.py check` of a real project, beside real forwarders."""

import socket
import time
from pathlib import Path

import pytest
from django.conf import settings
from django.test import override_settings
from forwarders import Forwarder, free_ports
from projects import Project

from channels_zmq import checks

DEDICATED = "channels_zmq.core.DedicatedZmqChannelLayer"
EMBEDDED = "channels_zmq.core.EmbeddedZmqChannelLayer"


def test_check_finds_a_mistake_and_fails(tmp_path: Path) -> None:
    """A mistake in CONFIG fails `check` without --deploy, and so each command that runs checks.

    The error has the id, the alias and a hint.
    """
    project = Project(tmp_path, {"default": {"BACKEND": DEDICATED, "CONFIG": {"pull_adress": "tcp://a:1"}}})
    done = project.manage("check")
    assert done.returncode == 1
    assert "channels_zmq.E001" in done.stderr
    assert "Layer 'default'" in done.stderr
    assert "HINT" in done.stderr


def test_forwarders_are_reached_with_deploy_only(tmp_path: Path, forwarder: Forwarder) -> None:
    """Only `check --deploy` connects to forwarders, and reports one that is down, but none that answers.

    The check has the tag `channels_zmq`.
    """
    gone = {"pull_socket_address": "tcp://127.0.0.1:9", "pub_socket_address": forwarder.pub}
    layers = {"good": {"BACKEND": DEDICATED, "CONFIG": forwarder.config}}
    assert Project(tmp_path, layers).manage("check", "--deploy", "--tag", "channels_zmq").returncode == 0
    project = Project(tmp_path, {**layers, "bad": {"BACKEND": DEDICATED, "CONFIG": gone}})
    assert project.manage("check", "--tag", "channels_zmq").returncode == 0
    done = project.manage("check", "--deploy", "--tag", "channels_zmq", "--fail-level", "WARNING")
    assert done.returncode == 1
    assert "channels_zmq.W004) Layer 'bad': nothing accepts connections at tcp://127.0.0.1:9" in done.stderr
    assert "good" not in done.stderr


def test_a_setting_that_cannot_become_right_is_an_error(tmp_path: Path, forwarder: Forwarder) -> None:
    """A setting that can never work is an error: swapped addresses fail a deployment.

    A forwarder that is down may only be late.
    """
    swapped = {"pull_socket_address": forwarder.pub, "pub_socket_address": forwarder.pull}
    project = Project(tmp_path, {"default": {"BACKEND": DEDICATED, "CONFIG": swapped}})
    done = project.manage("check", "--deploy", "--tag", "channels_zmq")
    assert done.returncode == 1
    assert "channels_zmq.E004" in done.stderr
    assert "swapped" in done.stderr


def test_reaching_forwarders_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of many forwarders is bounded in time, even if one accepts connections and stays silent."""
    if not settings.configured:
        settings.configure()
    monkeypatch.setattr(checks, "PATIENCE", 0.5)
    ports = [f"tcp://127.0.0.1:{port}" for port in free_ports(19)]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pub = [f"tcp://127.0.0.1:{silent.getsockname()[1]}", *ports[10:]]
        config = {"pull_socket_address": ports[:10], "pub_socket_address": pub}
        with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": DEDICATED, "CONFIG": config}}):
            begun = time.monotonic()
            found = checks.check_deployment()
            assert time.monotonic() - begun < 5
    assert {one.id for one in found} == {"channels_zmq.W004"}
    texts = [one.msg for one in found]
    assert len(texts) == 10
    assert "does not use ZeroMQ" in texts[0]
    assert all("nothing accepts connections" in text for text in texts[1:])


def test_an_embedded_layer_whose_producer_has_not_started_is_fine() -> None:
    """An embedded layer whose producer has not started causes no warning.

    The first process that sends binds its address, and the check does not become that process.
    """
    if not settings.configured:
        settings.configure()
    config = {"pub_socket_address": f"tcp://127.0.0.1:{free_ports(1)[0]}"}
    with (
        override_settings(CHANNEL_LAYERS={"default": {"BACKEND": EMBEDDED, "CONFIG": config}}),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(checks, "PATIENCE", 0.3)
        assert checks.check_deployment() == []
