"""`python -m benchmarks.webhook`: how long a review takes.

One replica of the webhook as a real process, which this process queries over TLS, as an API server does: reviews of a
pod with three containers by connections that stay open, at a fixed rate whether or not the answers have arrived. Times
count from the moment at which a review was due, so that a delayed one counts with its delay. The status is 0 if every
answer was right, also when the goal was missed; 1 if one was not; 2 if the webhook did not start.
"""

import argparse
import asyncio
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from channels_zmq_operator import certificates
from channels_zmq_operator.naming import LAYER_LABEL
from channels_zmq_operator.settings import PREFIX

from .report import default_path, machine, table
from .servers import START_TIMEOUT, STOP_TIMEOUT, ServerError, free_port

GOAL_P99_MS = 10.0
CONNECTIONS = 8
NAME = "localhost"


@dataclass(frozen=True, slots=True)
class Figures:
    """The measured figures; times in milliseconds."""

    reviews: int
    rate: float
    p50_ms: float
    p99_ms: float
    longest_ms: float


def pod() -> dict[str, Any]:
    """Return a pod as Deployments make them: three containers, with variables, probes, volumes and tolerations."""
    token = {"name": "kube-api-access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}
    container = {
        "image": f"registry.example/team/app@sha256:{'a' * 64}",
        "args": ["serve", "--workers=4", "--port=8000"],
        "env": [{"name": f"SETTING_{number}", "value": "x" * 40} for number in range(20)],
        "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8000}, "periodSeconds": 5},
        "volumeMounts": [token, {"name": "data", "mountPath": "/data"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "web-7d9c5b7f4-",
            "labels": {LAYER_LABEL: "chat", "app": "web", "pod-template-hash": "7d9c5b7f4"},
            "annotations": {"checksum/config": "c" * 64},
        },
        "spec": {
            "containers": [{"name": name, **container} for name in ("web", "worker", "metrics")],
            "volumes": [
                {"name": "data", "emptyDir": {}},
                {"name": "kube-api-access", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
            ],
            "tolerations": [
                {"key": f"node.kubernetes.io/{key}", "operator": "Exists"} for key in ("not-ready", "gone")
            ],
            "serviceAccountName": "web",
        },
    }


def uid(number: int) -> str:
    """Return the uid of a review."""
    return f"00000000-0000-0000-0000-{number:012d}"


def review(number: int) -> bytes:
    """Return a review with a uid of its own."""
    request = {
        "uid": uid(number),
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "namespace": "home",
        "operation": "CREATE",
        "object": pod(),
    }
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


def fault(number: int, answer: Any) -> str:
    """Return the fault of an answer, or an empty text if it is right."""
    response = answer["response"]
    if response["uid"] != uid(number):
        return f"review {number} got the answer to another one"
    if not response["allowed"] or not response.get("patch"):
        return f"review {number} got no patch: {response.get('status')}"
    return ""


@contextmanager
def webhook() -> Iterator[tuple[int, ssl.SSLContext]]:
    """Run one replica, and yield its port and a context that trusts it.

    Raises:
        ServerError: If it does not start.
    """
    pair = certificates.renewed(None, [NAME], certificates.now())
    port, admin = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="channels-zmq-benchmarks-") as folder:
        Path(folder, "tls.crt").write_bytes(pair.leaf)
        Path(folder, "tls.key").write_bytes(pair.key)
        settings = {"CERTIFICATE_FOLDER": folder, "WEBHOOK_PORT": port, "ADMIN_PORT": admin, "LOG_LEVEL": "WARNING"}
        environment = {**os.environ, **{PREFIX + name: str(value) for name, value in settings.items()}}
        process = subprocess.Popen([sys.executable, "-m", "channels_zmq_operator", "webhook"], env=environment)
        try:
            uvloop.run(_until_ready(f"http://{NAME}:{admin}/readyz", process))
            yield port, ssl.create_default_context(cadata=pair.bundle.decode())
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT)


async def _until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_TIMEOUT
    async with aiohttp.ClientSession() as session:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.05)
    raise ServerError("the webhook did not start")


async def measure(port: int, context: ssl.SSLContext, rate: float, seconds: float) -> tuple[Figures, list[str]]:
    """Send reviews at a rate for some seconds, and return the figures and the faults."""
    url = f"https://{NAME}:{port}/mutate"
    times: list[float] = []
    faults: list[str] = []
    connector = aiohttp.TCPConnector(ssl=context, limit=CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector, headers={"Content-Type": "application/json"}) as session:

        async def one(number: int, due: float) -> None:
            body = review(number)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            try:
                async with session.post(url, data=body) as response:
                    answer = await response.json()
            except aiohttp.ClientError as error:
                faults.append(f"review {number} got no answer: {error}")
                return
            times.append((time.perf_counter() - due) * 1000)
            if wrong := fault(number, answer):
                faults.append(wrong)

        now = time.perf_counter()
        await asyncio.gather(*(one(0, now) for _ in range(CONNECTIONS)))  # connections, and warm code
        times.clear()
        begin = time.perf_counter() + 0.1
        count = max(1, round(rate * seconds))
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                due = begin + number / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter() - 0.02))
                group.create_task(one(number, due))
        took = time.perf_counter() - begin
    times.sort()
    if not times:
        return Figures(0, 0.0, 0.0, 0.0, 0.0), faults
    p50, p99 = (times[min(len(times) - 1, int(len(times) * part))] for part in (0.5, 0.99))
    return Figures(len(times), len(times) / took, p50, p99, times[-1]), faults


def main(arguments: list[str] | None = None) -> int:
    """Parse the flags, measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.webhook", description="How long a review takes.")
    parser.add_argument("--rate", type=float, default=200.0, help="reviews a second (default: 200)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for how long (default: 20)")
    parser.add_argument("--json", type=Path, help="where to write the figures (default: in benchmarks/results)")
    flags = parser.parse_args(arguments)
    try:
        with webhook() as (port, context):
            figures, faults = uvloop.run(measure(port, context, flags.rate, flags.seconds))
    except ServerError as failure:
        print(failure, file=sys.stderr)
        return 2
    met = bool(figures.reviews) and figures.p99_ms < GOAL_P99_MS
    content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "settings": {"rate": flags.rate, "seconds": flags.seconds, "connections": CONNECTIONS},
        "figures": asdict(figures),
        "goals": [{"figure": "p99_ms", "below": GOAL_P99_MS, "met": met}],
        "failures": faults,
    }
    path = flags.json or default_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(table([tuple(asdict(figures)), tuple(f"{value:.4g}" for value in asdict(figures).values())]))
    print(f"\ngoal: p99 under {GOAL_P99_MS:g} ms: {'met' if met else 'MISSED'}", *faults[:10], sep="\n")
    print(f"\nwritten to {path}")
    return 1 if faults or not figures.reviews else 0


if __name__ == "__main__":
    sys.exit(main())
