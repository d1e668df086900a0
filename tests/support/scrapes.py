"""The targets of Prometheus: the labels that it adds to the samples of a pod found by a ServiceMonitor."""

from collections.abc import Iterable

from manifests import Manifest

from channels_zmq_operator.models import Monitoring, Owner
from channels_zmq_operator.render.inputs import Monitors
from channels_zmq_operator.render.service_monitor import render

Labels = dict[str, str]


def target_labels(monitor: Manifest, *, namespace: str, service: str, pod: str, container: str, address: str) -> Labels:
    """Return the labels of a target, as the Prometheus operator configures them for a ServiceMonitor.

    Args:
        monitor: The ServiceMonitor; it has one endpoint.
        namespace: The namespace of the pod and its Service.
        service: The Service through which the pod is found.
        pod: The name of the pod.
        container: The container with the port.
        address: `HOST:PORT`.
    """
    (endpoint,) = monitor["spec"]["endpoints"]
    found = {
        "namespace": namespace,
        "service": service,
        "pod": pod,
        "container": container,
        "endpoint": endpoint["port"],
        "job": service,
        "instance": address,
    }
    return found | {rule["targetLabel"]: rule["replacement"] for rule in endpoint.get("relabelings", ())}


def forwarders_monitor(layer: str, namespace: str) -> Manifest:
    """Return the ServiceMonitor that the operator makes for a layer."""
    return render(Owner(name=layer, namespace=namespace, uid="u", generation=1), Monitoring(), Monitors())


def series(name: str, labels: Labels) -> str:
    """Return a series in the notation of Prometheus."""
    return f"{name}{{{_joined(labels.items())}}}"


def _joined(labels: Iterable[tuple[str, str]]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(labels))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
