"""The webhook's server: it answers admission reviews of pods with patches. It sends no requests and has no permissions.

The server reloads the certificate's files when they change; if a new pair is invalid, the last valid one stays in use.

The cost of a review is bounded: a body that is too long or has too many values is denied before it is parsed,
`injection` limits what a pod may request, and the patch is created in parts while it is sent. Reviews with a long body
take turns, so that only one of them is in memory.
"""

import asyncio
import gc
import json
import logging
import os
import re
import ssl
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from channels_zmq_operator.certificates import expiry
from channels_zmq_operator.injection import InjectionError, patch
from channels_zmq_operator.settings import Settings

logger = logging.getLogger("channels_zmq_operator")

LOOK_EVERY = 1.0
"""Seconds between two checks of the certificate's files."""
SERVE_ON = 5.0
"""Seconds for which it keeps serving after SIGTERM: the API server may not know yet that this pod is terminating."""
LARGEST_REVIEW = 2**19
"""Maximum number of bytes of a body; a pod of three containers has about 5,000."""
MOST_VALUES = 20_000
"""Maximum number of JSON values of a body: each costs up to 0.2 us and 110 bytes, however short it is."""
LARGE = 2**16
"""Bytes of a body beyond which a review waits for its turn."""
PATIENCE = 5.0
"""Seconds within which a body must arrive and its response must be read: other reviews may wait for their turn."""
BLOCK = 2**16
"""Minimum number of bytes of a response that are written at once, except for its last block."""
LONGEST_MESSAGE = 1024
_UID = re.compile(rb'"request"\s*:\s*\{\s*"uid"\s*:\s*"([-0-9A-Za-z]{1,64})"')


class Webhook:
    """Answers admission reviews, and serves their metrics.

    Args:
        patience: Seconds for one review, not counting the wait for its turn.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        prefix = "channels_zmq_webhook"
        self._reviews = Counter(
            f"{prefix}_reviews", "Admission reviews, by outcome.", ["outcome"], registry=self.registry
        )
        self._duration = Histogram(
            f"{prefix}_review_duration_seconds",
            "Duration of an admission review.",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25),
            registry=self.registry,
        )
        self.expires = Gauge(
            f"{prefix}_certificate_expiry_timestamp_seconds",
            "Time at which the certificate expires.",
            registry=self.registry,
        )
        self.serves = False
        """Whether it has a valid certificate and is not stopping."""
        self._turn = asyncio.Lock()

    async def review(self, request: web.Request) -> web.StreamResponse:
        """Answer a review, even an invalid one."""
        length = request.content_length
        is_small = length is not None and length <= LARGE
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        if request.transport is not None:  # a connection buffers half a megabyte by default
            request.transport.set_write_buffer_limits(BLOCK)
        with self._duration.time():
            try:
                async with nullcontext() if is_small else self._turn, asyncio.timeout(self._patience):
                    outcome, answer = _answer(await _body(request))
                    await response.prepare(request)
                    for block in _blocks(answer):
                        await response.write(block)
                    await response.write_eof()
            except TimeoutError:
                outcome = "timeout"
                logger.warning(
                    "gave up an admission review: the request or the response took longer than %g s", self._patience
                )
                if request.transport is not None:
                    request.transport.abort()
        self._reviews.labels(outcome).inc()
        return response

    async def livez(self, request: web.Request) -> web.Response:
        """Report that the process is alive."""
        return web.Response(text="ok\n")

    async def readyz(self, request: web.Request) -> web.Response:
        """Report whether reviews can be answered."""
        return web.Response(text="ok\n") if self.serves else web.Response(status=503, text="no certificate yet\n")

    async def metrics(self, request: web.Request) -> web.Response:
        """Return the metrics."""
        return web.Response(body=generate_latest(self.registry), content_type="text/plain", charset="utf-8")


async def _body(request: web.Request) -> bytes:
    """Return the body of a request; of one that is longer than `LARGEST_REVIEW`, only the beginning."""
    body = bytearray()
    async for part in request.content.iter_any():
        body += part
        if len(body) > LARGEST_REVIEW:
            break
    return bytes(body)


def _blocks(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Join parts into blocks, so that a short response takes few packets."""
    block = bytearray()
    for part in parts:
        block += part
        if len(block) >= BLOCK:
            yield bytes(block)
            block.clear()
    yield bytes(block)


def _answer(body: bytes) -> tuple[str, Iterator[bytes]]:
    """Return the outcome of a review in one word, and the response; an invalid review also gets one."""
    uid = ""
    try:
        _check_size(body)
        request = json.loads(body)["request"]
        uid = str(request["uid"])
        pod = request.get("object")
        if not isinstance(pod, dict) or (request.get("kind") or {}).get("kind", "Pod") != "Pod":
            return "ignored", _review(uid, allowed=True)
        operations = patch(pod)
    except _TooLargeError as error:
        found = _UID.search(body, 0, LONGEST_MESSAGE)  # the API server rejects a response without its uid
        return "denied", _review(found[1].decode() if found else "", allowed=False, message=str(error))
    except InjectionError as error:
        return "denied", _review(uid, allowed=False, message=str(error))
    except Exception as error:  # every review needs a response
        logger.warning("invalid admission review: %s: %s", type(error).__name__, error)
        message = f"not an AdmissionReview of a pod: {type(error).__name__}: {error}"
        return "malformed", _review(uid, allowed=False, message=message)
    return "injected" if operations else "unchanged", _review(uid, allowed=True, operations=operations)


class _TooLargeError(Exception):
    """A body that would cost too much to parse."""


def _check_size(body: bytes) -> None:
    if len(body) > LARGEST_REVIEW:
        raise _TooLargeError(f"the pod is too large: its review has more than {LARGEST_REVIEW} bytes")
    # Each value but the first of its list or object follows a comma. Those inside strings count, too: it is a bound.
    if sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise _TooLargeError(f"the pod is too large: its review has more than {MOST_VALUES} values")


def _review(uid: str, *, allowed: bool, message: str = "", operations: Iterator[str] | None = None) -> Iterator[bytes]:
    response: dict[str, Any] = {"uid": uid, "allowed": allowed}
    if message:
        response["status"] = {
            "code": 400,
            "reason": "BadRequest",
            "message": f"channels-zmq: {message}"[:LONGEST_MESSAGE],
        }
    if operations:
        response |= {"patchType": "JSONPatch", "patch": ""}  # the last field: `_END` begins with its closing quote
    answer = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
    text = json.dumps(answer).encode()
    if operations is None:
        yield text
        return
    yield text[: -len(_END)]
    for part in operations:
        # JSON allows spaces between operations, and the base64 of a multiple of three bytes has no padding.
        yield b64encode((part + " " * (-len(part) % 3)).encode())
    yield _END


_END = b'"}}'


class Certificate:
    """The TLS context, with the current pair of files.

    Args:
        folder: The directory of `tls.crt` and `tls.key`.
    """

    def __init__(self, folder: str) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.expires = 0.0
        self._paths = Path(folder, "tls.crt"), Path(folder, "tls.key")
        self._state: object = None
        self._complained = ""

    def refresh(self) -> bool:
        """Reload the files if they have changed; return whether a valid pair is loaded."""
        try:
            # Follow the links of a mounted Secret once, since the kubelet may replace them between two reads.
            certificate, key = (path.resolve() for path in self._paths)
            state = [(found.st_mtime_ns, found.st_ino, found.st_size) for found in map(os.stat, (certificate, key))]
            if state != self._state:
                fresh = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                fresh.load_cert_chain(certificate, key)  # else the serving context would keep half of a broken pair
                self.context.load_cert_chain(certificate, key)
                self.expires = expiry(certificate.read_bytes())
                self._state, self._complained = state, ""
                logger.info("serving a certificate until %s", time.strftime("%Y-%m-%d", time.gmtime(self.expires)))
        except (OSError, ValueError) as error:
            if str(error) != self._complained:
                self._complained = str(error)
                kept = "keeping the previous one" if self._state is not None else "waiting for one"
                logger.warning("the certificate cannot be read, %s: %s", kept, error)
        return self._state is not None and self.expires > time.time()


async def serve(
    settings: Settings,
    stop: asyncio.Event,
    *,
    look_every: float = LOOK_EVERY,
    serve_on: float = SERVE_ON,
    patience: float = PATIENCE,
) -> None:
    """Serve reviews until `stop` is set, and for `serve_on` seconds more."""
    webhook, certificate = Webhook(patience), Certificate(settings.certificate_folder)
    gc.freeze()  # present objects stay: a collection during a large review need not visit them
    admin = web.Application()
    admin.add_routes(
        [web.get("/livez", webhook.livez), web.get("/readyz", webhook.readyz), web.get("/metrics", webhook.metrics)]
    )
    reviews = web.Application()
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
