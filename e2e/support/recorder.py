"""What Prometheus would see of an incident, and which of the chart's alerts would fire if the incident lasted.

A scenario *holds* the state that it has brought about, and names the alerts that have to fire. Meanwhile operator,
webhook and forwarders are read every few seconds, from a pod, with the labels that the ServiceMonitors give them. In
the end promtool evaluates the chart's rules: each state that was held goes on for longer than any alert waits
(`timelines.stretched`), so an incident of seconds shows what one of hours does.
"""

import json
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from kube import Manifest, apply, pod, program, programs, wait
from kubernetes import client, config
from prometheus_client.parser import text_string_to_metric_families
from promtool import evaluate, firing
from releases import CHART, NAME, NAMESPACE, helm
from scrapes import Labels, forwarders_monitor, series, target_labels
from timelines import Scrape, stretched
from yaml import safe_load_all

from channels_zmq_operator.naming import OWNER_LABEL

EVERY, SOON = 3, 0.5
"""Seconds between two scrapes; and while a scenario waits for them."""
PATIENCE = 120.0
"""Seconds that two scrapes may take: a target that does not answer takes ten."""
QUEUE_AGE = 5
"""Seconds that a message may wait before an alert: the default is longer than a scenario wants to wait."""
VALUES = {
    "monitoring": {
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True, "queueAgeSeconds": QUEUE_AGE},
    }
}
SCRAPER = "scraper"
MAP, VOLUME = programs()


class Alerts(Protocol):
    """What a scenario does with a recorder."""

    def hold(self, *alerts: str) -> None:
        """Let the state as it is now go on until exactly these alerts fire, named without what all names begin with."""

    def evaluate(self) -> None:
        """Compare what fires with what should, in each state that was held."""


class Unrecorded:
    """What scenarios have where no promtool could evaluate what is recorded."""

    def hold(self, *alerts: str) -> None:
        """Do nothing."""

    def evaluate(self) -> None:
        """Print that nothing is evaluated."""
        print("no promtool (`make promtool`): no alert was evaluated")


def start_scraper(namespace: str, node: str) -> None:
    """Start the pod from which metrics are read."""
    idle = program("scrape")
    idle["command"] = ["tail", "-f", "/dev/null"]
    where = {"kubernetes.io/hostname": node}
    apply(MAP, pod(SCRAPER, idle, volumes=[VOLUME], nodeSelector=where), namespace=namespace)
    wait("wait", f"pod/{SCRAPER}", "-n", namespace, "--for=condition=Ready")


class Recorder:
    """Reads all metrics that alerts are about, until it is closed.

    Args:
        scraper: The namespace of the pod that reads them.
        namespace: Where the scenario has its layers.
        folder: For the files of promtool.
    """

    def __init__(self, scraper: str, namespace: str, folder: Path) -> None:
        manifests = _chart()
        (self._rule,) = [each for each in manifests if each["kind"] == "PrometheusRule"]
        self._monitors = [each for each in manifests if each["kind"] == "ServiceMonitor"]
        self._namespace = namespace
        self._folder = folder
        config.load_kube_config()  # type: ignore[no-untyped-call] # the client's own stubs leave it out
        self._api = client.DiscoveryV1Api(client.ApiClient())
        names = sorted(set(re.findall(r"\bchannels_zmq_\w+", json.dumps(self._rule))))
        command = ["kubectl", "exec", "-i", "-n", scraper, SCRAPER, "--", "python", "-u", "/programs/scrape.py", *names]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._began = time.time()
        self._scrapes: list[Scrape] = []
        self._held: list[tuple[int, set[str]]] = []
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._wanted, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def hold(self, *alerts: str) -> None:
        """Let the state as it is now go on until exactly these alerts fire.

        It is read after this call, and a second time: between the two it is seen which counters grow.
        """
        now = time.monotonic()

        def is_read() -> bool:
            return self._failure is not None or sum(one.time > now for one in self._scrapes) >= 2

        self._wanted.set()
        with self._changed:
            assert self._changed.wait_for(is_read, PATIENCE), "the metrics are not read"
            self._wanted.clear()
            if self._failure is not None:
                raise self._failure
            first = next(number for number, one in enumerate(self._scrapes) if one.time > now)
            self._held.append((first, set(alerts)))

    def close(self) -> None:
        """Read no more."""
        self._stop.set()
        self._wanted.set()
        self._thread.join()
        self._process.terminate()
        self._process.communicate()

    def evaluate(self) -> None:
        """Compare what fires with what should, in each state that was held.

        Raises:
            AssertionError: If it differs; with what promtool says.
        """
        with self._changed:
            scrapes, held = list(self._scrapes), list(self._held)
        assert held
        longest = max(_seconds(alert["for"]) for alert in _alerts(self._rule))
        steps = round((longest + 900) / EVERY)  # and what the windows of rates need
        numbers = [number for number, _ in held]
        found, ends = stretched(scrapes, numbers, every=EVERY, steps=steps)
        expected = [firing(alerts, end * EVERY, 60) for end, (_, alerts) in zip(ends, held, strict=True)]
        test = {
            "interval": f"{EVERY}s",
            "start_timestamp": str(round(self._began)),
            "input_series": found,
            "promql_expr_test": expected,
        }
        problem = evaluate(self._rule, test, self._folder)
        states = [
            f"held until {end * EVERY} s:\n{_shown(scrapes[number])}" for end, number in zip(ends, numbers, strict=True)
        ]
        assert not problem, "\n".join((problem, *states))

    # In its thread

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                scrape = Scrape(began, self._scrape())
            except Exception as error:
                with self._changed:
                    self._failure = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._scrapes.append(scrape)
                self._changed.notify_all()
            self._wanted.wait(EVERY - SOON)
            self._stop.wait(SOON)

    def _scrape(self) -> dict[str, float]:
        targets = [found for namespace in (NAMESPACE, self._namespace) for found in self._targets(namespace)]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([f"http://{labels['instance']}/metrics" for labels in targets]) + "\n")
        self._process.stdin.flush()
        texts = json.loads(self._process.stdout.readline())
        found = {}
        for labels, text in zip(targets, texts, strict=True):
            found[series("up", labels)] = float(text is not None)
            for family in text_string_to_metric_families(text or ""):
                for sample in family.samples:
                    # The layers of the scenario before may still be on their way out.
                    if sample.labels.get("layer_namespace", self._namespace) == self._namespace:
                        found[series(sample.name, labels | sample.labels)] = sample.value
        return found

    def _targets(self, namespace: str) -> list[Labels]:
        """Return the targets of a namespace: also pods that are not ready, or ending, as Prometheus has them."""
        found = []
        slices: Any = self._api.list_namespaced_endpoint_slice(namespace).items
        for each in slices:
            labels = each.metadata.labels or {}
            monitors = list(self._monitors)
            if OWNER_LABEL in labels:
                monitors.append(forwarders_monitor(labels[OWNER_LABEL], namespace))
            for monitor in monitors:
                if monitor["metadata"]["namespace"] != namespace or not _matches(monitor, labels):
                    continue
                ports = {port.name: port.port for port in each.ports or ()}
                for endpoint in each.endpoints or ():
                    address = f"{endpoint.addresses[0]}:{ports[monitor['spec']['endpoints'][0]['port']]}"
                    found.append(
                        target_labels(
                            monitor,
                            namespace=namespace,
                            service=labels["kubernetes.io/service-name"],
                            pod=endpoint.target_ref.name,
                            container=labels["app.kubernetes.io/component"],
                            address=address,
                        )
                    )
        return found


def _chart() -> list[Manifest]:
    text = helm("template", NAME, CHART, "-n", NAMESPACE, values=VALUES)
    return [each for each in safe_load_all(text) if each]


def _alerts(rule: Manifest) -> list[Manifest]:
    return [alert for group in rule["spec"]["groups"] for alert in group["rules"]]


def _seconds(text: str) -> int:
    return int(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


def _matches(monitor: Manifest, labels: Labels) -> bool:
    """Return whether a ServiceMonitor selects a Service of these labels."""
    return bool(monitor["spec"]["selector"]["matchLabels"].items() <= labels.items())


def _shown(scrape: Scrape) -> str:
    """Return a scrape for people, without the counters of what has never happened."""
    return "".join(f"  {name} {value:g}\n" for name, value in scrape.samples.items() if value or "_total" not in name)
