"""The headless Service of a layer, whose name resolves to all of its forwarders."""

from channels_zmq_operator.models import Owner
from channels_zmq_operator.naming import PORTS, Manifest, forwarder_name, selector
from channels_zmq_operator.render.child import child


def render(owner: Owner) -> Manifest:
    """Return the Service."""
    spec = {
        "clusterIP": "None",  # headless: clients connect to every forwarder, and know which of them are healthy
        # A forwarder that starts becomes ready once its clients have connected: they must find it before.
        "publishNotReadyAddresses": True,
        "ipFamilyPolicy": "PreferDualStack",
        "selector": selector(owner),
        "ports": [
            {"name": name, "port": port, "targetPort": name, "protocol": "TCP", "appProtocol": protocol}
            for name, (port, protocol) in PORTS.items()
        ],
    }
    return child(owner, "v1", "Service", forwarder_name(owner), spec=spec)
