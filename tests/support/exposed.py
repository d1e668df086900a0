"""The samples that the programs expose at `/metrics`: their names, with the names of their labels."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from clusters import FakeCluster
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq.metrics import LayerCollector
from channels_zmq_forwarder.admin import Admin
from channels_zmq_forwarder.exchange import Exchange
from channels_zmq_forwarder.pump import Traffic
from channels_zmq_operator.manager import serving
from channels_zmq_operator.models import API_VERSION, KIND
from channels_zmq_operator.reconcile import Reconciler
from channels_zmq_operator.render import Choices
from channels_zmq_operator.webhook import Webhook
from channels_zmq_operator.workqueue import WorkQueue


async def exposed_samples(port: int) -> dict[str, set[str]]:
    """Return the samples that a Django process, forwarder, webhook and operator can have, with their labels.

    Args:
        port: A free port.
    """
    families: list[Metric] = []
    address = f"http://127.0.0.1:{port}/metrics"
    async with _operator(port), aiohttp.ClientSession() as session, session.get(address) as answer:
        families += text_string_to_metric_families(await answer.text())
    async with DedicatedZmqChannelLayer(
        pull_socket_address=f"tcp://127.0.0.1:{port}", pub_socket_address="tcp://127.0.0.1:9"
    ) as layer:
        layer.stats()
        families += LayerCollector(lambda: {"default": layer}).collect()
    webhook = Webhook()
    webhook._reviews.labels("injected")
    families += [*Admin(Exchange(bytes(8)), Traffic()).registry.collect(), *webhook.registry.collect()]
    out: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            out.setdefault(sample.name, set()).update(sample.labels)
    return out


@asynccontextmanager
async def _operator(port: int) -> AsyncIterator[None]:
    """Serve the metrics of an operator with one layer."""

    async def nothing(key: Any) -> float:
        return 0.0

    cluster = FakeCluster()
    reconciler = Reconciler(cluster, Choices("image"))
    condition = {"type": "Ready", "status": "True", "reason": "ForwardersReady"}
    metadata = {"name": "chat", "namespace": "a", "uid": "u", "generation": 1}
    resource = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": {}}
    reconciler.layer_seen({**resource, "status": {"conditions": [condition]}}, gone=False)
    async with serving(port, reconciler, WorkQueue(nothing), cluster):
        yield
