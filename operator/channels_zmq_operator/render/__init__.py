"""Renders the objects of a layer from its spec. Pure: no cluster, no clock, no randomness; keys are arguments.

Every object carries the layer's label, by which it is watched and pruned, and an owner reference, by which the cluster
deletes it with the layer. Each kind has a module of its own.
"""

from channels_zmq_operator.models import Owner, Spec
from channels_zmq_operator.naming import Manifest
from channels_zmq_operator.render import (
    budget,
    config_map,
    deployment,
    network_policy,
    secrets,
    service,
    service_monitor,
)
from channels_zmq_operator.render.inputs import Choices, LayerKeys, Monitors

__all__ = ["Choices", "LayerKeys", "Monitors", "render"]


def render(owner: Owner, spec: Spec, keys: LayerKeys | None, choices: Choices) -> list[Manifest]:
    """Return the objects of a layer in the order in which to apply them; `keys` is None if CURVE is disabled."""
    objects = [
        secrets.for_clients(owner, spec, keys, choices.cluster_domain),
        service.render(owner),
        deployment.render(owner, spec, keys, choices),
    ]
    if keys is not None:  # first: forwarders must allow a key before applications get it
        objects.insert(0, secrets.for_forwarders(owner, keys))
    if spec.forwarders > 1:  # a budget for a single one would block drains, or have no effect
        objects.append(budget.render(owner))
    if spec.network_policy.enabled:
        objects.append(network_policy.render(owner, spec.network_policy.metrics_from))
    if choices.service_monitors and spec.monitoring.service_monitor == "Auto":
        objects.append(service_monitor.render(owner, spec.monitoring, choices.monitors))
    # Last: pods wait for the ConfigMap, and find everything else when they start.
    objects.append(config_map.render(owner, spec, choices.cluster_domain))
    return objects
