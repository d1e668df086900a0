"""The ServiceMonitor of a layer's forwarders, by which Prometheus finds their metrics."""

from channels_zmq_operator.models import Monitoring, Owner
from channels_zmq_operator.naming import OWNER_LABEL, Manifest, forwarder_name
from channels_zmq_operator.render.child import child
from channels_zmq_operator.render.inputs import Monitors


def render(owner: Owner, own: Monitoring, default: Monitors) -> Manifest:
    """Return the ServiceMonitor."""
    # The operator's metrics have the same labels: alerts join both, and find `up` of a silent forwarder.
    target_labels = {"layer_namespace": owner.namespace, "layer": owner.name}
    endpoint = {
        "port": "metrics",
        "interval": own.interval or default.interval,
        "relabelings": [{"targetLabel": name, "replacement": value} for name, value in target_labels.items()],
    }
    spec = {"selector": {"matchLabels": {OWNER_LABEL: owner.name}}, "endpoints": [endpoint]}
    manifest = child(owner, "monitoring.coreos.com/v1", "ServiceMonitor", forwarder_name(owner), spec=spec)
    metadata = manifest["metadata"]
    metadata["labels"] = {**default.labels, **own.labels, **metadata["labels"]}
    return manifest
