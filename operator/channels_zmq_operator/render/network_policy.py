"""The NetworkPolicy of a layer's forwarders."""

from channels_zmq_operator.models import Owner
from channels_zmq_operator.naming import (
    ADMIN_PORT,
    LAYER_LABEL,
    PUB_PORT,
    PULL_PORT,
    Manifest,
    forwarder_name,
    selector,
)
from channels_zmq_operator.render.child import child


def render(owner: Owner, metrics_from: list[Manifest]) -> Manifest:
    """Return the NetworkPolicy."""

    def ports(*numbers: int) -> list[Manifest]:
        return [{"port": number, "protocol": "TCP"} for number in numbers]

    readers = {"from": metrics_from} if metrics_from else {}  # else all peers, also from outside the pod network
    # The value is not compared: the label of a pod with several layers names only one of them.
    clients = {"matchExpressions": [{"key": LAYER_LABEL, "operator": "Exists"}]}
    spec = {
        "podSelector": {"matchLabels": selector(owner)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {"from": [{"podSelector": clients}], "ports": ports(PULL_PORT, PUB_PORT)},
            {**readers, "ports": ports(ADMIN_PORT)},
        ],
        "egress": [],  # a forwarder accepts connections and opens none
    }
    return child(owner, "networking.k8s.io/v1", "NetworkPolicy", forwarder_name(owner), spec=spec)
