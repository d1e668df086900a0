"""The PodDisruptionBudget of a layer's forwarders."""

from channels_zmq_operator.models import Owner
from channels_zmq_operator.naming import Manifest, forwarder_name, selector
from channels_zmq_operator.render.child import child


def render(owner: Owner) -> Manifest:
    """Return a budget that allows the eviction of one forwarder at a time, and always of one that is not ready."""
    spec = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": selector(owner)},
    }
    return child(owner, "policy/v1", "PodDisruptionBudget", forwarder_name(owner), spec=spec)
