"""A stand-in for cert-manager: its two kinds, certificates, and trust where an annotation asks for it."""

import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from kube import Manifest, apply, get, kubectl, until
from releases import NAMESPACE

from channels_zmq_operator import certificates

GROUP = "cert-manager.io"
INJECT = f"{GROUP}/inject-ca-from"
WEBHOOKS = "mutatingwebhookconfiguration"


class Signer:
    """Signs what it is asked for, once for each Certificate and again when it is told to renew."""

    def __init__(self) -> None:
        self._stop, self._renews = threading.Event(), threading.Event()
        self._signed: dict[str, certificates.Certificates] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._problem: Exception | None = None
        self.secrets: set[str] = set()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """End; a problem that it had is one of the scenario."""
        self._stop.set()
        self._thread.join()
        if self._problem is not None:
            raise self._problem

    def renew(self) -> None:
        """Sign everything anew, by the same authority."""
        self._renews.set()

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.5):
                renews = self._renews.is_set()
                self._renews.clear()
                for one in get("certificates.cert-manager.io", namespace=NAMESPACE):
                    self._sign(one, renews)
                for one in get(WEBHOOKS):
                    self._inject(one)
        except Exception as problem:
            self._problem = problem

    def _sign(self, wanted: Manifest, renews: bool) -> None:
        namespace, spec = wanted["metadata"]["namespace"], wanted["spec"]
        name = f"{namespace}/{wanted['metadata']['name']}"
        before = self._signed.get(name)
        if not spec.get("dnsNames") or (before is not None and not renews):
            return
        if before is not None:
            before = replace(before, leaf=b"", key=b"")
        made = self._signed[name] = certificates.renewed(before, spec["dnsNames"], certificates.now())
        secret, _ = certificates.to_secrets(made, namespace, spec["secretName"])
        secret["metadata"] = {"name": spec["secretName"]}  # without the operator's labels
        apply(secret, namespace=namespace)
        self.secrets.add(spec["secretName"])

    def _inject(self, configuration: Manifest) -> None:
        metadata = configuration["metadata"]
        made = self._signed.get((metadata.get("annotations") or {}).get(INJECT, ""))
        if made is None:
            return
        text = b64encode(made.bundle).decode()
        paths = [f"/webhooks/{number}/clientConfig/caBundle" for number in range(len(configuration["webhooks"]))]
        if {one["clientConfig"].get("caBundle", "") for one in configuration["webhooks"]} != {text}:
            patch = [{"op": "add", "path": path, "value": text} for path in paths]
            kubectl("patch", WEBHOOKS, metadata["name"], "--type=json", "-p", json.dumps(patch))


def _definition(kind: str) -> Manifest:
    plural = f"{kind.lower()}s"
    schema: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


@contextmanager
def signer() -> Iterator[Signer]:
    """Have the kinds, and a signer at work."""
    definitions = [_definition(kind) for kind in ("Certificate", "Issuer")]
    kubectl("apply", "-f", "-", given=definitions)
    for one in definitions:
        kubectl("wait", f"crd/{one['metadata']['name']}", "--for=condition=Established")
    until(lambda: get("certificates.cert-manager.io", namespace=NAMESPACE) == [], "the kind is served")
    found = Signer()
    found.start()
    try:
        yield found
    finally:
        found.end()
        for one in definitions:
            kubectl("delete", "crd", one["metadata"]["name"])
        kubectl("delete", "secret", "-n", NAMESPACE, "--ignore-not-found", *found.secrets)
