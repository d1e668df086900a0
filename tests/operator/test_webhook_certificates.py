"""The webhook's certificates in the cluster, and the bundle in its configuration."""

import asyncio
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
from clusters import FakeCluster, Killed, Request, refused
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from channels_zmq_operator.certificates import AUTHORITY_DAYS, Certificates, from_secrets
from channels_zmq_operator.cluster import ClusterError
from channels_zmq_operator.naming import Manifest
from channels_zmq_operator.settings import Settings
from channels_zmq_operator.webhook_certificates import LOOK_EVERY, WEBHOOK, WEBHOOKS, WebhookCertificates

SETTINGS = Settings(namespace="home", webhook_name="injector", webhook_service="hook", webhook_secret="pair")
DAY = timedelta(days=1)
CHARTS = {
    "apiVersion": "admissionregistration.k8s.io/v1",
    "kind": WEBHOOKS,
    "metadata": {"name": "injector", "labels": {"by": "helm"}},
    "webhooks": [{"name": WEBHOOK, "failurePolicy": "Fail", "clientConfig": {"service": {"name": "hook"}}}],
}
"""The webhook's configuration as the chart creates it."""


class World:
    """A cluster with the chart's configuration, and one WebhookCertificates in it."""

    def __init__(self, *, configured: bool = True) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.cluster = FakeCluster()
        if configured:
            self.cluster.put(CHARTS)
        self.trust = self.started()

    def started(self) -> WebhookCertificates:
        """Return a new operator's WebhookCertificates, which gets the events of the watch."""
        new = WebhookCertificates(self.cluster, SETTINGS, clock=lambda: self.now)
        self.cluster.watchers.clear()
        self.cluster.watch(lambda event, found: new.configuration_seen(found) if found["kind"] == WEBHOOKS else None)
        return new

    def certificates(self) -> Certificates | None:
        look = self.cluster.look
        return from_secrets(look("Secret", "home", "pair"), look("Secret", "home", "pair-ca"))

    def bundle(self) -> bytes:
        (webhook,) = self.configuration()["webhooks"]
        return b64decode(webhook["clientConfig"].get("caBundle", ""))

    def configuration(self) -> Manifest:
        found = self.cluster.look(WEBHOOKS, "", "injector")
        assert found is not None
        return found

    def empty(self) -> None:
        """Remove the bundle, as `helm upgrade --force` does."""
        self.cluster.edit(WEBHOOKS, "", "injector", lambda found: found["webhooks"][0]["clientConfig"].pop("caBundle"))

    def asked(self) -> list[Request]:
        """Return the requests since the last call."""
        found, self.cluster.log = self.cluster.log, []
        return found


def signed_by_one(leaf: bytes, bundle: bytes) -> bool:
    certificate = x509.load_pem_x509_certificate(leaf)
    for authority in x509.load_pem_x509_certificates(bundle):
        with suppress(InvalidSignature, ValueError):
            certificate.verify_directly_issued_by(authority)
            return True
    return False


GETS = [("get", "Secret", "pair"), ("get", "Secret", "pair-ca")]
BUNDLE = ("apply", WEBHOOKS, "injector")
FIRST = [*GETS, ("apply", "Secret", "pair-ca"), BUNDLE, ("apply", "Secret", "pair-ca"), ("apply", "Secret", "pair")]
"""The requests of the first reconciliation; the authority is applied again, since its owner is known by then."""


async def test_the_secrets_go_with_the_configuration() -> None:
    """The configuration owns the Secrets, also after their owner was removed: uninstalling the chart leaves nothing."""
    world = World()
    await world.trust.look()
    for name in ("pair", "pair-ca"):
        found = world.cluster.look("Secret", "home", name)
        assert found is not None
        (owner,) = found["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == (WEBHOOKS, world.configuration()["metadata"]["uid"])
        world.cluster.edit("Secret", "home", name, lambda found: found["metadata"].update(ownerReferences=[]))
    world.asked()
    await world.trust.look()
    assert world.asked() == [*GETS, BUNDLE, ("apply", "Secret", "pair-ca"), ("apply", "Secret", "pair")]


async def test_the_first_look_makes_everything() -> None:
    """The authority is written first, then the bundle, then the leaf, so that only a trusted leaf is served.

    The chart's fields of the configuration stay.
    """
    world = World()
    await world.trust.look()
    assert world.asked() == FIRST
    found = world.certificates()
    assert found is not None
    assert world.bundle() == found.bundle
    configuration = world.configuration()
    assert configuration["metadata"]["labels"] == {"by": "helm"}
    (webhook,) = configuration["webhooks"]
    assert webhook["failurePolicy"] == "Fail"
    assert webhook["clientConfig"]["service"] == {"name": "hook"}


async def test_nothing_is_written_when_nothing_is_due() -> None:
    """When nothing is due, neither this operator nor the next one applies a Secret or changes the cluster."""
    world = World()
    await world.trust.look()
    before = world.cluster.objects.copy()
    world.asked()
    for each in (world.trust, world.started()):
        await each.look()
        assert world.asked() == [*GETS, BUNDLE]
    assert world.cluster.objects == before


async def test_a_due_leaf_is_renewed_and_the_bundle_stays() -> None:
    """A due leaf is renewed with an event, and neither the authority nor the bundle is changed."""
    world = World()
    await world.trust.look()
    first, bundle = world.certificates(), world.bundle()
    world.asked()
    world.now += 61 * DAY
    await world.trust.look()
    assert world.asked() == [*GETS, BUNDLE, ("apply", "Secret", "pair"), ("create", "Event", "")]
    (event,) = [one for (kind, _, _), one in world.cluster.objects.items() if kind == "Event"]
    assert (event["reason"], event["regarding"]["name"]) == ("CertificateRenewed", "pair")
    second = world.certificates()
    assert first is not None
    assert second is not None
    assert second.leaf != first.leaf
    assert world.bundle() == bundle == second.bundle


async def test_both_authorities_are_trusted_during_a_change() -> None:
    """During a change the bundle has the new authority first, and the old one until it expires."""
    world = World()
    await world.trust.look()
    first = world.certificates()
    world.now += 2500 * DAY
    await world.trust.look()
    second = world.certificates()
    assert first is not None
    assert second is not None
    assert len(second.authorities) == 2
    assert world.bundle() == second.bundle
    assert first.bundle in world.bundle()
    world.now += 2500 * DAY
    await world.trust.look()
    assert first.bundle not in world.bundle()


async def test_no_leaf_is_written_while_its_bundle_is_refused() -> None:
    """While the bundle is refused, pods keep the trusted leaf; the renewal happens once the bundle is accepted."""
    world = World()
    await world.trust.look()
    first = world.certificates()
    world.now += 61 * DAY
    world.cluster.refusal = lambda request: refused(403, "Forbidden") if request == BUNDLE else None
    with pytest.raises(ClusterError):
        await world.trust.look()
    assert world.certificates() == first
    world.cluster.refusal = lambda request: None
    await world.trust.look()
    assert world.certificates() != first


@pytest.mark.parametrize("days", [61, 2500, 5000])
@pytest.mark.parametrize("before", [True, False])
async def test_what_is_served_is_trusted_wherever_the_operator_dies(days: int, before: bool) -> None:
    """An operator that dies at any request, before or after its effect, leaves a trusted leaf.

    The next operator completes the renewal.
    """
    for request in range(1, 6):
        world = World()
        await world.trust.look()
        world.now += days * DAY
        world.cluster.kill_at, world.cluster.kill_before = len(world.cluster.log) + request, before
        try:
            await world.trust.look()
        except Killed:
            found = world.certificates()
            assert found is not None
            assert days > AUTHORITY_DAYS or signed_by_one(found.leaf, world.bundle())
        world.cluster.kill_at = None
        await world.started().look()
        found = world.certificates()
        assert found is not None
        assert signed_by_one(found.leaf, world.bundle())
        assert found.bundle == world.bundle()
        assert len(found.authorities) == (2 if days == 2500 else 1)


async def test_it_tries_again_until_the_configuration_is_there() -> None:
    """Without the configuration, retries pause for up to a minute; after a success the pauses are short again."""
    world = World(configured=False)
    pauses = [await world.trust.attempt() for _ in range(9)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert world.cluster.look("Secret", "home", "pair") is None
    assert world.cluster.look("Secret", "home", "pair-ca") is not None
    world.cluster.put(CHARTS)
    assert await world.trust.attempt() == LOOK_EVERY
    assert world.bundle()
    world.cluster.refusal = lambda request: refused(0, "ClientConnectorError")
    assert [await world.trust.attempt() for _ in range(2)] == [1.0, 2.0]


async def test_whatever_goes_wrong_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected error is logged, and does not end the renewals."""
    world = World()

    def broken(request: Request) -> None:
        raise ZeroDivisionError

    world.cluster.refusal = broken
    assert await world.trust.attempt() == 1.0
    assert "could not be checked" in caplog.text


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0)


async def settled() -> None:
    """Run everything that does not wait for time to pass."""
    for _ in range(100):
        await asyncio.sleep(0)


@asynccontextmanager
async def kept(world: World) -> AsyncIterator[None]:
    keeping = asyncio.create_task(world.trust.keep())
    yield
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)


async def test_the_configuration_that_comes_wakes_it() -> None:
    """A configuration that is created ends the pause before the next attempt."""
    world = World(configured=False)
    async with kept(world):
        await until(lambda: BUNDLE in world.cluster.log)
        await settled()
        world.cluster.put(CHARTS)
        await until(lambda: bool(world.bundle()))


async def test_a_bundle_that_was_emptied_comes_back() -> None:
    """A bundle that is removed is applied again, unchanged and at once, also to a configuration created anew."""
    world = World()
    async with kept(world):
        await until(lambda: bool(world.bundle()))
        bundle = world.bundle()
        for _ in range(3):
            await settled()
            world.empty()
            assert world.bundle() == b""
            await until(lambda: world.bundle() == bundle)
        await settled()
        world.cluster.remove(WEBHOOKS, "", "injector")
        world.cluster.put(CHARTS)
        await until(lambda: world.bundle() == bundle)


async def test_an_echo_of_our_own_does_not_wake_it() -> None:
    """An idle operator sends no request after an echo of its own write, or a change that leaves the bundle alone."""
    world = World()
    async with kept(world):
        await settled()
        world.cluster.edit(WEBHOOKS, "", "injector", lambda found: found["metadata"]["labels"].update(more="labels"))
        await settled()
        assert world.asked() == FIRST
        world.now += 61 * DAY
        world.empty()
        await settled()
        assert len([request for request in world.asked() if request[0] != "create"]) == 4


@pytest.mark.parametrize("name", ["pair", "pair-ca"])
async def test_a_secret_that_was_deleted_is_back_within_a_minute(name: str) -> None:
    """A deleted Secret is restored within a minute; pods' leaves stay trusted if the authority still exists."""
    world = World()
    assert await world.trust.attempt() <= 60
    bundle = world.bundle()
    world.cluster.remove("Secret", "home", name)
    assert await world.trust.attempt() <= 60
    found = world.certificates()
    assert found is not None
    assert signed_by_one(found.leaf, world.bundle())
    assert (world.bundle() == bundle) == (name == "pair")
