"""Kubernetes Events: what happened to an object, shown by `kubectl describe`."""

import logging
from datetime import datetime

from channels_zmq_operator.cluster import Cluster, ClusterError, NamespaceEnding
from channels_zmq_operator.naming import FIELD_MANAGER, Manifest

logger = logging.getLogger("channels_zmq_operator")


async def make_event(
    cluster: Cluster, regarding: Manifest, kind: str, reason: str, message: str, now: datetime
) -> None:
    """Make an event that `kubectl describe` shows at an object; failing at it is only logged.

    Args:
        cluster: Where.
        regarding: Kind, name, namespace and uid of the object.
        kind: `Normal` or `Warning`.
        reason: In one word.
        message: For people.
        now: Aware time.
    """
    event = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"generateName": f"{regarding['name']}-", "namespace": regarding["namespace"]},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": f"{FIELD_MANAGER}.channels-zmq.io",
        "reportingInstance": FIELD_MANAGER,
        "action": "Reconcile",
        "reason": reason,
        "type": kind,
        "note": message[:1000],
        "regarding": regarding,
    }
    try:
        await cluster.create(event)
    except NamespaceEnding:
        pass  # its events are deleted, too
    except ClusterError as error:
        logger.warning("the event could not be created: %s", error)
