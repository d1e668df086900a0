"""Prometheus metrics of this process's layers: the counts of `layer.stats()` at each scrape.

Requires the package prometheus_client, which no other module of the library imports.

- A layer that this process has not used yet has no metrics, because a scrape does not open connections.
- After a fork the child exports only the layers that it has used itself.
- Counters begin at 0 again when a layer is closed and opened again, as Prometheus expects of counters.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from channels.layers import channel_layers
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from channels_zmq.client.counters import ADVICE, SILENT, Stats
from channels_zmq.core import DedicatedZmqChannelLayer, EmbeddedZmqChannelLayer

PREFIX = "channels_zmq"
CAUSES = sorted({*ADVICE, *SILENT})
"""Causes of drops; each is exported from the beginning, so that a rate shows the first drop."""


class _Number(NamedTuple):
    name: str
    text: str
    of: Callable[[Stats], int]


_COUNTERS = (
    _Number("messages_sent", "Messages that were sent.", lambda stats: stats["sent"]),
    _Number(
        "messages_received",
        "Messages that arrived for channels of this process; a message to a group counts once.",
        lambda stats: stats["received"],
    ),
    _Number(
        "messages_repeated", "Messages that arrived a second time and were ignored.", lambda stats: stats["repeated"]
    ),
    _Number(
        "frames_sent_again",
        "Frames that were sent again because a forwarder, or the connection to it, had failed.",
        lambda stats: stats["sent_again"],
    ),
    _Number("reconnects", "Reconnections after an outage.", lambda stats: stats["reconnects"]),
)
_GAUGES = (
    _Number(
        "connected",
        "1 while a forwarder, or the producer of an embedded layer, is connected.",
        lambda stats: stats["connected"],
    ),
    _Number("messages_waiting", "Messages that wait to be read.", lambda stats: stats["waiting"]),
    _Number("messages_held", "Messages that wait to be sent or acknowledged.", lambda stats: stats["held"]),
    _Number(
        "frames_unacknowledged",
        "Frames that forwarders have not acknowledged, of all links.",
        lambda stats: sum(link["unacknowledged"] for link in stats["links"]),
    ),
    _Number("channels", "Channels with a mailbox.", lambda stats: stats["channels"]),
    _Number("groups", "Groups with a member in this process.", lambda stats: stats["groups"]),
    _Number("members", "Memberships of channels in groups.", lambda stats: stats["members"]),
)


def used_layers() -> Mapping[str, object]:
    """Return the layers that Channels has made in this process, by alias."""
    return dict(channel_layers.backends)


class LayerCollector(Collector):
    """Collects the metrics of layers at each scrape.

    Args:
        layers: Returns the layers by alias; those of other packages are left out.
    """

    def __init__(self, layers: Callable[[], Mapping[str, object]] = used_layers) -> None:
        self._layers = layers

    def describe(self) -> Iterator[Metric]:
        """Return the metrics without values, by which a registry detects a second registration."""
        return families({})

    def collect(self) -> Iterator[Metric]:
        """Return the metrics of every layer that this process has used."""
        found: dict[str, Stats] = {}
        for alias, layer in self._layers().items():
            if isinstance(layer, DedicatedZmqChannelLayer | EmbeddedZmqChannelLayer):
                stats = layer.stats_if_used()
                if stats is not None:
                    found[alias] = stats
        return families(found)


def families(found: Mapping[str, Stats]) -> Iterator[Metric]:
    """Return the metrics of layers.

    Args:
        found: Their counts, by alias.
    """
    for kind, numbers in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
        for number in numbers:
            family = kind(f"{PREFIX}_{number.name}", number.text, labels=["alias"])
            for alias, stats in found.items():
                family.add_metric([alias], number.of(stats))
            yield family
    drops = CounterMetricFamily(f"{PREFIX}_drops", "Messages that were lost, by cause.", labels=["alias", "cause"])
    links = GaugeMetricFamily(f"{PREFIX}_links", "Links to forwarders, by state.", labels=["alias", "state"])
    for alias, stats in found.items():
        for cause in sorted({*CAUSES, *stats["dropped"]}):
            drops.add_metric([alias, cause], stats["dropped"].get(cause, 0))
        states = [link["state"] for link in stats["links"]]
        for state in sorted(set(states)):
            links.add_metric([alias, state], states.count(state))
    yield from (drops, links)


def register(registry: CollectorRegistry = REGISTRY) -> None:
    """Let a registry collect the metrics of all layers of `CHANNEL_LAYERS`; once in each process.

    Raises:
        ValueError: If the registry has them already.
    """
    registry.register(LayerCollector())
