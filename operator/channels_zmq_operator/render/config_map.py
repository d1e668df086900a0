"""The ConfigMap of a layer: addresses and options, as the variables of the library."""

import json

from channels_zmq_operator.models import Owner, Spec, size
from channels_zmq_operator.naming import ENV, Manifest, addresses, config_map_name
from channels_zmq_operator.render.child import child


def render(owner: Owner, spec: Spec, cluster_domain: str) -> Manifest:
    """Return the ConfigMap."""
    pull, pub = addresses(owner, cluster_domain)
    values = {
        "PULL_SOCKET_ADDRESS": pull,
        "PUB_SOCKET_ADDRESS": pub,
        "CAPACITY": str(spec.layer.capacity),
        "EXPIRY": str(spec.layer.expiry),
        "GROUP_EXPIRY": str(spec.layer.group_expiry),
        "MAX_MESSAGE_SIZE": str(size(spec.layer.max_message_size)),
        "PREFETCH": str(spec.clients.prefetch),
        "OUTBOX_CAPACITY": str(spec.clients.outbox_capacity),
        "OUTBOX_BYTES": str(size(spec.clients.outbox_bytes)),
        "CONNECT_TIMEOUT": str(spec.clients.connect_timeout),
        "LINGER": str(spec.clients.linger),
    }
    hooks = {"ON_DISCONNECT": spec.clients.on_disconnect, "ON_RECONNECT": spec.clients.on_reconnect}
    values |= {key: value for key, value in hooks.items() if value}
    if spec.layer.channel_capacity:
        values["CHANNEL_CAPACITY"] = json.dumps(spec.layer.channel_capacity, sort_keys=True)
    data = {ENV + key: value for key, value in values.items()}
    return child(owner, "v1", "ConfigMap", config_map_name(owner.name), data=data)
