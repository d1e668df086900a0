"""Keeps the webhook's certificates valid, and the API server's trust in them.

The API server trusts the `caBundle` in the webhook's configuration, whose other fields the chart owns. The bundle is
applied before the leaf that needs it: until the API server has accepted the bundle, pods serve the leaf that is already
trusted.
"""

import asyncio
import logging
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from channels_zmq_operator import certificates
from channels_zmq_operator.cluster import Cluster, ClusterError
from channels_zmq_operator.events import make_event
from channels_zmq_operator.naming import Manifest
from channels_zmq_operator.settings import Settings

logger = logging.getLogger("channels_zmq_operator")

WEBHOOKS = "MutatingWebhookConfiguration"
LOOK_EVERY = 60.0
"""Seconds between two checks. The next one restores a deleted Secret: pods cannot start without it."""
FIRST_RETRY, LONGEST_RETRY = 1.0, 60.0


class WebhookCertificates:
    """The certificates of one webhook.

    Args:
        cluster: The API server.
        settings: Names of the webhook's objects.
        clock: Returns the current time, with a time zone.
    """

    def __init__(self, cluster: Cluster, settings: Settings, clock: Callable[[], datetime] = certificates.now) -> None:
        self._cluster, self._settings, self._clock = cluster, settings, clock
        self._changed = asyncio.Event()
        self._bundle = ""
        self._retry = FIRST_RETRY

    def configuration_seen(self, configuration: Manifest) -> None:
        """Check the webhook's current configuration: the field that the operator owns may have been cleared."""
        bundles = {(one.get("clientConfig") or {}).get("caBundle", "") for one in configuration.get("webhooks") or ()}
        if bundles != {self._bundle}:
            self._changed.set()

    async def keep(self) -> None:
        """Check the certificates periodically, and whenever the configuration has another bundle, until cancelled."""
        while True:
            pause = await self.attempt()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), pause)

    async def attempt(self) -> float:
        """Check the certificates, and return seconds until the next check at the latest; a failure is only logged."""
        self._changed.clear()  # before the check, so that a change during it causes another one
        try:
            await self.look()
        except ClusterError as error:
            logger.warning("the webhook is not trusted yet, retrying in %g s: %s", self._retry, error)
        except Exception:
            logger.exception("the webhook's certificate could not be checked, retrying in %g s", self._retry)
        else:
            self._retry = FIRST_RETRY
            return LOOK_EVERY
        pause, self._retry = self._retry, min(LONGEST_RETRY, 2 * self._retry)
        return pause

    async def look(self) -> None:
        """Renew the certificates that are due, and let the API server trust them.

        Raises:
            ClusterError: If the API server is unavailable or refuses a request, or if the webhook's configuration does
                not exist yet.
        """
        own = self._settings
        leaf = await self._cluster.get("Secret", own.namespace, own.webhook_secret)
        authority = await self._cluster.get("Secret", own.namespace, f"{own.webhook_secret}-ca")
        names = [
            f"{own.webhook_service}.{own.namespace}.svc",
            f"{own.webhook_service}.{own.namespace}.svc.cluster.local",
        ]
        before = certificates.from_secrets(leaf, authority)
        after = certificates.renewed(before, names, self._clock())
        self._bundle = b64encode(after.bundle).decode()
        serving, signing = certificates.to_secrets(after, own.namespace, own.webhook_secret)
        # The authorities' keys first: if a later request fails, the next check goes on with the same authorities.
        if before is None or after.authorities != before.authorities:
            signing["metadata"]["ownerReferences"] = _owners(authority)
            await self._cluster.apply(signing)
        configuration = await self._cluster.apply(
            {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": WEBHOOKS,
                "metadata": {"name": own.webhook_name},
                "webhooks": [{"name": WEBHOOK, "clientConfig": {"caBundle": self._bundle}}],
            }
        )
        # The leaf after the bundle. Both Secrets belong to the configuration, whose uid is known only now.
        owner = _reference(configuration)
        for secret, found in ((signing, authority), (serving, leaf)):
            secret["metadata"]["ownerReferences"] = [owner]
            if _owners(found) != [owner] or (secret is serving and after != before):
                await self._cluster.apply(secret)
        if after != before:
            logger.info("the webhook has a new certificate")
            if before is not None:
                metadata = serving["metadata"]
                secret = {"apiVersion": "v1", "kind": "Secret", "name": metadata["name"], "namespace": own.namespace}
                await make_event(
                    self._cluster,
                    secret,
                    "Normal",
                    "CertificateRenewed",
                    "the webhook has a new certificate",
                    self._clock(),
                )


def _reference(configuration: Manifest) -> Manifest:
    """Return an owner reference to the configuration: without it, nothing trusts the Secrets any more."""
    reference = {key: configuration[key] for key in ("apiVersion", "kind")}
    return reference | {key: configuration["metadata"][key] for key in ("name", "uid")}


def _owners(secret: Manifest | None) -> list[Manifest]:
    return list((secret or {}).get("metadata", {}).get("ownerReferences") or ())


WEBHOOK = "pods.channels-zmq.io"
"""The name of the webhook inside its configuration."""
