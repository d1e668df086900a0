"""The ConfigMap of a layer: addresses and options, as environment variables that the library reads."""

import json
from typing import Any

from channels_zmq_operator.models import Owner, Spec, size
from channels_zmq_operator.naming import ENV, Manifest, addresses, config_map_name
from channels_zmq_operator.render.child import child


def render(owner: Owner, spec: Spec, cluster_domain: str) -> Manifest:
    """Return the ConfigMap."""
    pull, pub = addresses(owner, cluster_domain)
    options: dict[str, Any] = {
        "capacity": spec.layer.capacity,
        "channel_capacity": spec.layer.channel_capacity,
        "expiry": spec.layer.expiry,
        "group_expiry": spec.layer.group_expiry,
        "max_message_size": size(spec.layer.max_message_size),
        "prefetch": spec.clients.prefetch,
        "outbox_capacity": spec.clients.outbox_capacity,
        "outbox_bytes": size(spec.clients.outbox_bytes),
        "connect_timeout": spec.clients.connect_timeout,
        "linger": spec.clients.linger,
        "on_disconnect": spec.clients.on_disconnect,
        "on_reconnect": spec.clients.on_reconnect,
    }
    given = {key: value for key, value in options.items() if value not in (None, {}, "")}
    values = {
        "PULL_SOCKET_ADDRESS": pull,
        "PUB_SOCKET_ADDRESS": pub,
        "OPTIONS": json.dumps(given, sort_keys=True),
    }
    data = {ENV + key: value for key, value in values.items()}
    return child(owner, "v1", "ConfigMap", config_map_name(owner.name), data=data)
