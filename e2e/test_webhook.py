"""The webhook: away, renewed and replaced, while pods are made."""

import json
import re
import threading
import urllib.request
from base64 import b64decode
from datetime import timedelta
from ssl import CERT_NONE, create_default_context
from typing import Any

import pytest
from kube import (
    LAYER_LABEL,
    apply,
    attempt,
    container,
    ended,
    events,
    forwarded,
    get,
    kubectl,
    layer,
    pod,
    pod_spec,
    rolled_out,
    until,
    wait_ready,
)
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from recorder import Alerts
from releases import NAMESPACE, OPERATOR, WEBHOOK, WEBHOOKS, Release
from signers import signer
from streams import homes

from channels_zmq_operator import certificates

LABELS = {LAYER_LABEL: "chat"}


def test_while_it_is_down_only_pods_with_the_label_wait(installed: Release, namespace: str, alerts: Alerts) -> None:
    """Others start; a Deployment's pods say why they are not there, and come when it is back."""
    alerts.hold()
    kubectl("scale", "deployment", WEBHOOK, "-n", NAMESPACE, "--replicas=0")
    try:
        until(lambda: not get("pods", namespace=NAMESPACE, selector=WEBHOOKS), "it is down")
        apply(pod("plain", container(command=["true"])), namespace=namespace)
        ended("plain", namespace=namespace)
        refused = attempt("apply", "-n", namespace, "-f", "-", given=pod("labelled", container(), labels=LABELS))
        assert refused.returncode
        assert "pods.channels-zmq.io" in refused.stderr
        labels = {**LABELS, "app": "waits"}
        template = {"metadata": {"labels": labels}, "spec": pod_spec(container(command=["tail", "-f", "/dev/null"]))}
        body = {"selector": {"matchLabels": {"app": "waits"}}, "template": template}
        apply(
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "waits"}, "spec": body},
            namespace=namespace,
        )

        def told() -> bool:
            return any(
                "pods.channels-zmq.io" in one["message"] for one in events(namespace) if one["reason"] == "FailedCreate"
            )

        until(told, "an event that names the webhook")
        alerts.hold("WebhookDown")
    finally:
        kubectl("scale", "deployment", WEBHOOK, "-n", NAMESPACE, "--replicas=2")
        installed.wait()
    apply(layer("chat"), namespace=namespace)
    kubectl("rollout", "restart", "deployment/waits", "-n", namespace)  # its next try may be minutes away
    rolled_out("waits", namespace=namespace)
    wait_ready(namespace=namespace)
    alerts.hold()
    alerts.evaluate()


class Calls:
    """Pods with the label, made one after the other without end, but as a dry run."""

    def __init__(self, namespace: str) -> None:
        config.load_kube_config()  # type: ignore[no-untyped-call] # the client's own stubs leave it out
        self._api = client.CoreV1Api()
        self._namespace = namespace
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.made = 0
        self.failures: list[str] = []

    def __enter__(self) -> "Calls":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        body: Any = pod("calls", container(), labels=LABELS)
        while not self._stop.wait(0.02):
            try:
                found: Any = self._api.create_namespaced_pod(self._namespace, body, dry_run="All")
                assert "channels-zmq.io/injected" in found.metadata.annotations
                self.made += 1
            except (ApiException, AssertionError) as error:
                self.failures.append(str(error))


def expiries() -> set[int]:
    """Return until when the certificates are valid that the webhook's pods serve."""
    found = set()
    for name in homes(WEBHOOKS, NAMESPACE):
        with forwarded(f"pod/{name}", 8080, namespace=NAMESPACE) as port:
            text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        value = re.search(r"^channels_zmq_webhook_certificate_expiry_timestamp_seconds (\S+)$", text, re.MULTILINE)
        assert value is not None
        found.add(int(float(value[1])))
    return found


def test_no_call_fails_while_its_certificate_is_renewed_and_its_pods_are_replaced(
    installed: Release, namespace: str
) -> None:
    """A leaf that is due is renewed by the operator, served by running pods a minute later, and by new ones."""
    secret, authority = (get("secret", f"{WEBHOOK}{end}", namespace=NAMESPACE) for end in ("", "-ca"))
    before = certificates.from_secrets(secret, authority)
    assert before is not None
    names = [f"{WEBHOOK}.{NAMESPACE}.svc", f"{WEBHOOK}.{NAMESPACE}.svc.cluster.local"]
    old = certificates.now() - timedelta(days=certificates.LEAF_DAYS - 10)
    leaf, key = certificates._new_leaf(before.authorities[0], names, old)
    due = certificates.Certificates(before.authorities, leaf, key)
    (serving, _) = certificates.to_secrets(due, NAMESPACE, WEBHOOK)
    kubectl("patch", "secret", WEBHOOK, "-n", NAMESPACE, "--type=merge", "-p", json.dumps({"data": serving["data"]}))
    with Calls(namespace) as calls:
        kubectl("rollout", "restart", f"deployment/{OPERATOR}", "-n", NAMESPACE)  # it renews leaves when it starts
        renewed = until(lambda: _expiry_of_the_secret(leaf), "the operator has renewed the leaf")
        until(lambda: expiries() == {renewed}, "both pods serve the new leaf", patience=180, every=3.0)
        before_replacement = calls.made
        kubectl("rollout", "restart", f"deployment/{WEBHOOK}", "-n", NAMESPACE)
        installed.wait()
        assert expiries() == {renewed}
    print(f"{calls.made} calls, failed: {len(calls.failures)}")
    assert calls.failures == []
    assert 0 < before_replacement < calls.made


def _expiry_of_the_secret(but: bytes) -> int:
    found = b64decode(get("secret", WEBHOOK, namespace=NAMESPACE)["data"]["tls.crt"])
    return 0 if found == but else int(certificates.expiry(found))


@pytest.mark.parametrize("review", ["", "{}", "[]", '{"request": {"uid": "1", "object": []}}'])
def test_whatever_comes_gets_an_answer(installed: Release, review: str) -> None:
    """Also requests to the real server that are not reviews."""
    with forwarded(f"deployment/{WEBHOOK}", 10250, namespace=NAMESPACE) as port:
        context = create_default_context()
        context.check_hostname, context.verify_mode = False, CERT_NONE
        request = urllib.request.Request(
            f"https://127.0.0.1:{port}/mutate", review.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            found = json.load(answer)
    assert found["kind"] == "AdmissionReview"
    assert isinstance(found["response"]["allowed"], bool)


def test_cert_manager_makes_and_renews_its_certificate(release: Release, namespace: str) -> None:
    """By a stand-in that signs: the operator makes none, and no call fails while running pods take up the new one."""
    release.remove()
    with signer() as signs:
        release.ensure({"certificates": {"mode": "CertManager"}})
        assert "certificate" not in kubectl("logs", f"deployment/{OPERATOR}", "-n", NAMESPACE)
        apply(layer("chat"), namespace=namespace)
        apply(pod("asks", container(command=["true"]), labels=LABELS), namespace=namespace)
        assert "channels-zmq.io/injected" in get("pod", "asks", namespace=namespace)["metadata"]["annotations"]
        served = expiries()
        with Calls(namespace) as calls:
            signs.renew()
            until(lambda: not served & expiries(), "the pods serve the new one", patience=180, every=2)
        assert calls.failures == []
        assert calls.made
        release.remove()
