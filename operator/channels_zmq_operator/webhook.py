"""The webhook's server: reviews of pods come in, patches go out. It asks nobody anything and holds no rights.

The certificate's files are read again while it serves; a pair that cannot be used leaves the last good one in place.
"""

import asyncio
import json
import logging
import os
import ssl
import time
from base64 import b64encode
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from channels_zmq_operator.certificates import expiry
from channels_zmq_operator.injection import InjectionError, patch
from channels_zmq_operator.settings import Settings

logger = logging.getLogger("channels_zmq_operator")

LOOK_EVERY = 1.0
"""Seconds between two looks at the certificate's files."""
SERVE_ON = 5.0
"""Seconds that it goes on serving after SIGTERM: until then the API server may not know that this pod leaves."""
LARGEST_REVIEW = 16 * 2**20
LONGEST_MESSAGE = 1024


class Webhook:
    """The reviews, and their metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        prefix = "channels_zmq_webhook"
        self._reviews = Counter(f"{prefix}_reviews", "Reviews, by outcome.", ["outcome"], registry=self.registry)
        self._duration = Histogram(
            f"{prefix}_review_duration_seconds",
            "How long a review took.",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25),
            registry=self.registry,
        )
        self.expires = Gauge(
            f"{prefix}_certificate_expiry_timestamp_seconds", "When the certificate expires.", registry=self.registry
        )
        self.serves = False
        """Whether there is a certificate to serve with."""

    async def review(self, request: web.Request) -> web.Response:
        """Answer a review, whatever it is."""
        with self._duration.time():
            try:
                body = await request.read()
            except web.HTTPRequestEntityTooLarge as error:
                answer, outcome = _malformed("", error)
            else:
                answer, outcome = _answer(body)
        self._reviews.labels(outcome).inc()
        return web.json_response(answer)

    async def livez(self, request: web.Request) -> web.Response:
        """Say that the process lives."""
        return web.Response(text="ok\n")

    async def readyz(self, request: web.Request) -> web.Response:
        """Say whether reviews can come in."""
        return web.Response(text="ok\n") if self.serves else web.Response(status=503, text="no certificate yet\n")

    async def metrics(self, request: web.Request) -> web.Response:
        """Return the metrics."""
        return web.Response(body=generate_latest(self.registry), content_type="text/plain", charset="utf-8")


def _answer(body: bytes) -> tuple[dict[str, Any], str]:
    """Return the answer to a review, whatever it is, and what it says in one word."""
    uid = ""
    try:
        request = json.loads(body)["request"]
        uid = str(request["uid"])
        pod = request.get("object")
        if not isinstance(pod, dict) or (request.get("kind") or {}).get("kind", "Pod") != "Pod":
            return _review(uid, allowed=True), "ignored"
        operations = patch(pod)
    except InjectionError as error:
        return _review(uid, allowed=False, message=str(error)), "denied"
    except Exception as error:  # nobody can be helped by an exception here
        return _malformed(uid, error)
    return _review(uid, allowed=True, operations=operations), "injected" if operations else "unchanged"


def _malformed(uid: str, error: Exception) -> tuple[dict[str, Any], str]:
    logger.warning("a review that cannot be understood: %s: %s", type(error).__name__, error)
    message = f"no AdmissionReview of a pod: {type(error).__name__}: {error}"
    return _review(uid, allowed=False, message=message), "malformed"


def _review(
    uid: str, *, allowed: bool, message: str = "", operations: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    response: dict[str, Any] = {"uid": uid, "allowed": allowed}
    if message:
        response["status"] = {
            "code": 400,
            "reason": "BadRequest",
            "message": f"channels-zmq: {message}"[:LONGEST_MESSAGE],
        }
    if operations:
        response |= {"patchType": "JSONPatch", "patch": b64encode(json.dumps(operations).encode()).decode()}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


class Certificate:
    """The TLS context, with the pair of files that is there now.

    Args:
        folder: Holds `tls.crt` and `tls.key`.
    """

    def __init__(self, folder: str) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.expires = 0.0
        self._paths = Path(folder, "tls.crt"), Path(folder, "tls.key")
        self._state: object = None
        self._complained = ""

    def refresh(self) -> bool:
        """Read the files again if they have changed; return whether there is a pair to serve with."""
        try:
            # Where the links of a mounted Secret lead: it may change between two looks at the same link.
            certificate, key = (path.resolve() for path in self._paths)
            state = [(found.st_mtime_ns, found.st_ino, found.st_size) for found in map(os.stat, (certificate, key))]
            if state != self._state:
                fresh = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                fresh.load_cert_chain(certificate, key)  # the serving context would be left with half of a broken pair
                self.context.load_cert_chain(certificate, key)
                self.expires = expiry(certificate.read_bytes())
                self._state, self._complained = state, ""
                logger.info("serving a certificate until %s", time.strftime("%Y-%m-%d", time.gmtime(self.expires)))
        except (OSError, ValueError) as error:
            if str(error) != self._complained:
                self._complained = str(error)
                kept = "the last one stays" if self._state is not None else "waiting for one"
                logger.warning("the certificate cannot be read, %s: %s", kept, error)
        return self._state is not None and self.expires > time.time()


async def serve(
    settings: Settings, stop: asyncio.Event, *, look_every: float = LOOK_EVERY, serve_on: float = SERVE_ON
) -> None:
    """Serve reviews until told to stop, and a little longer."""
    webhook, certificate = Webhook(), Certificate(settings.certificate_folder)
    admin = web.Application()
    admin.add_routes(
        [web.get("/livez", webhook.livez), web.get("/readyz", webhook.readyz), web.get("/metrics", webhook.metrics)]
    )
    reviews = web.Application(client_max_size=LARGEST_REVIEW)
    reviews.add_routes([web.post("/mutate", webhook.review)])
    runners = [web.AppRunner(app, access_log=None, shutdown_timeout=serve_on) for app in (admin, reviews)]
    for runner in runners:
        await runner.setup()
    try:
        await web.TCPSite(runners[0], None, settings.admin_port).start()
        listening = False
        while not stop.is_set():
            usable = certificate.refresh()
            webhook.expires.set(certificate.expires)
            if usable and not listening:
                await web.TCPSite(runners[1], None, settings.webhook_port, ssl_context=certificate.context).start()
                listening = True
            webhook.serves = usable
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), look_every)
        webhook.serves = False
        logger.info("stopping in %g s", serve_on)
        await asyncio.sleep(serve_on)
    finally:
        for runner in runners:
            await runner.cleanup()
