"""The cluster of the current KUBECONFIG, by kubectl: what a person would type, and waiting for what it brings about."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from channels_zmq import __version__

Manifest = dict[str, Any]
Found = TypeVar("Found")

PATIENCE = 120.0
"""Seconds that anything may take: far more than it does, for a loaded machine."""
LAYER_LABEL = "channels-zmq.io/layer"
ENV = "CHANNELS_ZMQ_"
FORWARDER = "app.kubernetes.io/name=channels-zmq-forwarder"
CHAT_IMAGE = os.environ.get("E2E_CHAT_IMAGE", f"channels-zmq-chat:{__version__}")
RESTRICTED: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


class KubectlError(AssertionError):
    """kubectl ended with an error; what it said."""


def context() -> str:
    """Return the name of the cluster of KUBECONFIG, or an empty text without a cluster for tests."""
    if not os.environ.get("KUBECONFIG") or shutil.which("kubectl") is None:
        return ""
    return kubectl("config", "current-context", check=False).strip()


def kubectl(*arguments: str, given: Any = None, check: bool = True, patience: float = PATIENCE) -> str:
    """Run kubectl and return what it prints.

    Args:
        arguments: Its command line.
        given: An object, a list of objects or text for its standard input.
        check: Whether an error is one here too.
        patience: Seconds.

    Raises:
        KubectlError: If it ends with an error, or not within `patience`.
    """
    done = attempt(*arguments, given=given, patience=patience)
    if check and done.returncode:
        raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def attempt(*arguments: str, given: Any = None, patience: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run kubectl; return its exit code and output also if it fails."""
    if isinstance(given, list):
        given = {"apiVersion": "v1", "kind": "List", "items": given}
    text = given if given is None or isinstance(given, str) else json.dumps(given)
    command = ["kubectl", *arguments]
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {patience:g} s")


def wait(*arguments: str, patience: float = PATIENCE) -> None:
    """Run a command of kubectl that waits by itself, and reports what it waited for.

    Raises:
        KubectlError: If it does not end well within `patience` seconds.
    """
    kubectl(*arguments, f"--timeout={patience:g}s", patience=patience + 20)


def refused(manifest: Manifest, *, namespace: str) -> str:
    """Return why the API server refuses an object; it is an error if it does not."""
    done = attempt("apply", "--server-side", "-n", namespace, "-f", "-", given=manifest)
    assert done.returncode, f"accepted: {manifest}"
    return done.stderr


def get(kind: str, name: str = "", *, namespace: str = "", selector: str = "") -> Any:
    """Return one object, or None; without a name a list of objects."""
    arguments = ["get", kind, "-o", "json", "--ignore-not-found"]
    arguments += [name] if name else []
    arguments += ["-n", namespace] if namespace else []
    arguments += ["-l", selector] if selector else []
    text = kubectl(*arguments)
    if not text.strip():
        return None if name else []
    found = json.loads(text)
    return found if name else found["items"]


def until(
    look: Callable[[], Found | None], what: str | Callable[[], str], patience: float = PATIENCE, every: float = 0.2
) -> Found:
    """Look until something true is there, and return it."""
    deadline = time.monotonic() + patience
    problem = ""
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except (KubectlError, OSError) as error:
            problem = f" ({error})"
        time.sleep(every)
    raise AssertionError(f"not within {patience:g} s: {what if isinstance(what, str) else what()}{problem}")


def layer(name: str = "chat", **spec: Any) -> Manifest:
    """Return a layer's resource."""
    return {
        "apiVersion": "channels-zmq.io/v1alpha1",
        "kind": "ZmqChannelLayer",
        "metadata": {"name": name},
        "spec": spec,
    }


def apply(*manifests: Manifest, namespace: str) -> None:
    """Apply objects in a namespace."""
    kubectl("apply", "-n", namespace, "-f", "-", given=list(manifests))


def conditions(name: str, *, namespace: str) -> dict[str, Manifest]:
    """Return the conditions of a layer by type."""
    return conditions_of(get("zmqchannellayer", name, namespace=namespace) or {})


def conditions_of(one: Manifest) -> dict[str, Manifest]:
    """Return the conditions of an object by type."""
    return {each["type"]: each for each in one.get("status", {}).get("conditions", ())}


def options(name: str, namespace: str) -> dict[str, Any]:
    """Return what a layer's pods are told, but for its addresses and keys."""
    data = get("configmap", f"{name}-channels", namespace=namespace)["data"]
    found: dict[str, Any] = json.loads(data[f"{ENV}OPTIONS"])
    return found


def wait_ready(name: str = "chat", *, namespace: str, patience: float = PATIENCE) -> None:
    """Wait until a layer is ready."""
    wait("wait", f"zmqchannellayer/{name}", "-n", namespace, "--for=condition=Ready", patience=patience)


def rolled_out(deployment: str, *, namespace: str) -> None:
    """Wait until a Deployment runs what it should, and nothing else."""
    wait("rollout", "status", f"deployment/{deployment}", "-n", namespace)


def events(namespace: str, name: str = "") -> list[Manifest]:
    """Return the events of a namespace, or those of the objects of one name."""
    found = get("events", namespace=namespace)
    return [one for one in found if not name or one["involvedObject"].get("name") == name]


def logs(pod: str, *, namespace: str, container: str = "") -> str:
    """Return what a pod has printed; nothing if it has not started."""
    return attempt("logs", "-n", namespace, pod, *(["-c", container] if container else [])).stdout


def last_line(pod: str, *, namespace: str) -> str:
    """Return the last line that a pod has printed; an empty text if it has printed nothing."""
    return (logs(pod, namespace=namespace).splitlines() or [""])[-1]


def container(name: str = "main", command: list[str] | None = None, **rest: Any) -> Manifest:
    """Return a container of the chat's image, such as the strictest security standard takes."""
    given = {"command": command} if command else {}
    return {
        "name": name,
        "image": CHAT_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": RESTRICTED,
        **given,
        **rest,
    }


def pod_spec(*containers: Manifest, **rest: Any) -> Manifest:
    """Return the spec of a pod, such as the strictest security standard takes."""
    return {
        "containers": list(containers),
        "terminationGracePeriodSeconds": 5,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        **rest,
    }


def pod(
    name: str,
    *containers: Manifest,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    **spec: Any,
) -> Manifest:
    """Return a bare pod that is not started again."""
    metadata = {"name": name, "labels": labels or {}, "annotations": annotations or {}}
    spec.setdefault("restartPolicy", "Never")
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec(*containers, **spec)}


PROGRAMS = Path(__file__).parents[1] / "programs"


def program(name: str, *arguments: str, **rest: Any) -> Manifest:
    """Return a container that runs one of `e2e/programs`, once the namespace and the pod have them."""
    mount = {"name": "programs", "mountPath": "/programs", "readOnly": True}
    command = ["python", f"/programs/{name}.py", *arguments]
    return container(rest.pop("container", "main"), command, volumeMounts=[mount], **rest)


def programs() -> tuple[Manifest, Manifest]:
    """Return the ConfigMap with the programs, and the volume for the pods that run them."""
    data = {path.name: path.read_text(encoding="utf-8") for path in PROGRAMS.glob("*.py")}
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "programs"}, "data": data}
    return config_map, {"name": "programs", "configMap": {"name": "programs"}}


def ended(name: str, *, namespace: str, patience: float = PATIENCE) -> str:
    """Wait until a pod has ended well; return what it printed."""

    def phase() -> str:
        found = str(get("pod", name, namespace=namespace)["status"].get("phase"))
        return found if found in ("Succeeded", "Failed") else ""

    found = until(phase, f"the end of pod {name}", patience)
    text = logs(name, namespace=namespace)
    assert found == "Succeeded", text
    return text


@contextmanager
def forwarded(target: str, port: int, *, namespace: str) -> Iterator[int]:
    """Forward a port of this machine to one of a pod or Service, and yield its number.

    Raises:
        KubectlError: If kubectl refuses, such as for a pod that has just ended.
    """
    command = ["kubectl", "port-forward", "-n", namespace, target, f":{port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "Forwarding from" not in line:
            raise KubectlError(f"kubectl port-forward {target}: {line.strip()}")
        yield int(line.split("127.0.0.1:")[1].split()[0])
    finally:
        process.terminate()
        process.communicate()


def diagnosis(namespace: str) -> str:
    """Return objects, events, descriptions and logs of a namespace, to explain a failure."""
    pods = attempt("get", "pods", "-n", namespace, "-o", "name").stdout.split()
    parts = [
        _shown("get", "zcl,deploy,pods,svc,cm,secrets,jobs", "-n", namespace, "-o", "wide"),
        _shown("get", "events", "-n", namespace, "--sort-by=.lastTimestamp"),
        _shown("describe", "zcl,pods", "-n", namespace),
        *(_shown("logs", "-n", namespace, name, "--all-containers", "--tail=60") for name in pods),
    ]
    return "\n".join(parts)


def _shown(*arguments: str) -> str:
    """Return a command of kubectl and its output; the kubelet of a node that is off answers no request for logs."""
    done = attempt(*arguments, "--request-timeout=10s")
    return f"$ kubectl {' '.join(arguments)}\n{done.stdout}{done.stderr}"
