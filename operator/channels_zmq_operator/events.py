"""Kubernetes Events: what happened to an object, shown by `kubectl describe`."""

import logging
from datetime import datetime

from channels_zmq_operator.cluster import Cluster, ClusterError, NamespaceEnding
from channels_zmq_operator.naming import FIELD_MANAGER, Manifest

logger = logging.getLogger("channels_zmq_operator")


async def make_event(
    cluster: Cluster, regarding: Manifest, kind: str, reason: str, message: str, now: datetime
) -> None:
    """Create an event that `kubectl describe` shows for an object; a failure is only logged.

    Args:
        cluster: The API server.
        regarding: API version, kind, name and namespace of the object, and its uid if known.
        kind: `Normal` or `Warning`.
        reason: The reason in one word.
        message: Text for people, of which 1,000 characters are kept.
        now: The current time, with a time zone.
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
        pass  # the events are deleted with the namespace
    except ClusterError as error:
        logger.warning("the event could not be created: %s", error)
