"""Prometheus metrics of the layers that this process uses."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from channels.layers import get_channel_layer
from django.conf import settings
from django.test import override_settings
from forwarders import PATIENCE, Forwarder, close_all, until
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from channels_zmq import metrics
from channels_zmq.client.counters import ADVICE, SILENT
from channels_zmq.core import EmbeddedZmqChannelLayer

DEDICATED = "channels_zmq.core.DedicatedZmqChannelLayer"
EMBEDDED = "channels_zmq.core.EmbeddedZmqChannelLayer"
MEMORY = "channels.layers.InMemoryChannelLayer"


@pytest.fixture
def registry() -> CollectorRegistry:
    found = CollectorRegistry()
    metrics.register(found)
    return found


@pytest.fixture
def layers(forwarder: Forwarder) -> Iterator[None]:
    """Configure a dedicated layer, an embedded one, and one of another package."""
    if not settings.configured:
        settings.configure()
    known = {
        "default": {"BACKEND": DEDICATED, "CONFIG": forwarder.config},
        "alone": {"BACKEND": EMBEDDED, "CONFIG": {"pub_socket_address": "inproc://metrics", "capacity": 2}},
        "memory": {"BACKEND": MEMORY},
    }
    with override_settings(CHANNEL_LAYERS=known):
        yield
    close_all()


def samples(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """Return the samples of a scrape, by name and the values of their labels."""
    text = generate_latest(registry).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def use(alias: str) -> Any:
    """Send a message to a group with one member, leave it unread, and return the layer."""
    layer = get_channel_layer(alias)
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    await layer.group_send("room", {"type": "a"})
    if alias != "memory":
        await until(lambda: layer.stats()["waiting"] == 1)
    return layer


async def test_a_scrape_shows_what_each_layer_has_counted(layers: None, registry: CollectorRegistry) -> None:
    """A scrape has the counters of each layer of this library, labelled with its alias."""
    alone = await use("alone")
    await alone.group_send("room", {"type": "a"})
    await alone.group_send("room", {"type": "a"})
    await use("default")
    await use("memory")
    found = samples(registry)
    assert {key[1] for key in found} == {"default", "alone"}
    assert found["channels_zmq_messages_sent_total", "alone"] == 3
    assert found["channels_zmq_messages_received_total", "alone"] == 3
    assert found["channels_zmq_messages_waiting", "alone"] == 2
    assert found["channels_zmq_drops_total", "alone", "mailbox_full"] == 1
    assert found["channels_zmq_messages_sent_total", "default"] == 1
    assert found["channels_zmq_drops_total", "default", "mailbox_full"] == 0
    assert found["channels_zmq_links", "default", "up"] == 1
    for alias in ("default", "alone"):
        assert found["channels_zmq_connected", alias] == 1
        assert found["channels_zmq_groups", alias] == found["channels_zmq_members", alias] == 1
        assert {key[2] for key in found if key[:2] == ("channels_zmq_drops_total", alias)} == {*ADVICE, *SILENT}


async def test_a_scrape_opens_no_connection(layers: None, registry: CollectorRegistry, forwarder: Forwarder) -> None:
    """A scrape neither opens a connection of a layer nor shows one that is unused or closed."""
    layer = get_channel_layer("default")
    assert samples(registry) == {}
    assert forwarder.status()["clients"] == 0
    await use("default")
    assert samples(registry)
    await layer.close()
    assert samples(registry) == {}
    assert layer.stats_if_used() is None


def test_a_registry_takes_them_once(registry: CollectorRegistry) -> None:
    """A second registration is refused: each value would appear twice, and Prometheus would reject all."""
    with pytest.raises(ValueError, match="channels_zmq"):
        metrics.register(registry)


async def test_every_name_follows_prometheus(layers: None, registry: CollectorRegistry) -> None:
    """Each metric has the prefix, a name in snake_case, and `_total` only if it is a counter."""
    await use("default")
    for family in registry.collect():
        assert family.name.startswith("channels_zmq_")
        assert not family.name.startswith("channels_zmq_forwarder_")
        assert family.name == family.name.lower()
        assert not family.name.endswith("_total")
        assert all(sample.name.endswith("_total") == (family.type == "counter") for sample in family.samples)
        assert family.documentation.endswith(".")


FORK = """
import os, sys
from asgiref.sync import async_to_sync
from django.conf import settings
settings.configure(CHANNEL_LAYERS={"default": {"BACKEND": "channels_zmq.core.EmbeddedZmqChannelLayer"}})
from channels.layers import get_channel_layer
from prometheus_client import CollectorRegistry, generate_latest
from channels_zmq import metrics

registry = CollectorRegistry()
metrics.register(registry)
layer = get_channel_layer()

def sent():
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if line.startswith("channels_zmq_messages_sent_total")]

for _ in range(3):
    async_to_sync(layer.group_send)("room", {})
assert sent() == ['channels_zmq_messages_sent_total{alias="default"} 3.0'], sent()
child = os.fork()
if not child:
    assert sent() == [], sent()
    async_to_sync(layer.group_send)("room", {})
    assert sent() == ['channels_zmq_messages_sent_total{alias="default"} 1.0'], sent()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert sent() == ['channels_zmq_messages_sent_total{alias="default"} 3.0'], sent()
"""


def test_a_forked_child_counts_for_itself() -> None:
    """A forked child counts from zero once it has used the layer, and the parent's counters continue."""
    subprocess.run([sys.executable, "-W", "error", "-c", FORK], check=True, timeout=PATIENCE)


def test_the_layers_do_not_import_the_package(tmp_path: Path) -> None:
    """The layers do not import `prometheus_client`, which only users of the metrics need."""
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('not installed')")
    program = "from channels_zmq import core, apps, checks; core.EmbeddedZmqChannelLayer()"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {program}"]
    subprocess.run(command, check=True, timeout=PATIENCE)


async def test_a_collector_takes_layers_that_channels_does_not_know() -> None:
    """A collector accepts layers that Channels does not know, by names of the user's choice."""
    async with EmbeddedZmqChannelLayer(pub_socket_address="inproc://own") as layer:
        await layer.group_send("room", {})
        registry = CollectorRegistry()
        registry.register(metrics.LayerCollector(lambda: {"mine": layer}))
        assert samples(registry)["channels_zmq_messages_sent_total", "mine"] == 1
