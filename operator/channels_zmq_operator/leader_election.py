"""Leader election: only the replica that holds the Lease reconciles.

A replica acquires the Lease if the Lease is free, or if the replica has seen no renewal for the Lease's whole duration.
It measures that by its own clock: clocks differ, so the times inside the Lease are only informational. It leads for two
thirds of the duration after the start of its last renewal, and so has stopped long before another replica may take
over. Every write carries the resource version that was read: if two replicas acquire the Lease at once, the API server
refuses the second write.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from channels_zmq_operator.cluster import Cluster, ClusterError
from channels_zmq_operator.naming import MANAGED_BY, Manifest

logger = logging.getLogger("channels_zmq_operator")

DURATION = 15.0
LEADS, RENEWS = 2 / 3, 1 / 5
"""Fractions of the duration: the time for which a renewal lets its holder lead, and the time between two renewals."""


class LeaderElection:
    """The part of one replica in the election.

    Args:
        cluster: The API server.
        namespace: Namespace of the Lease.
        name: Name of the Lease.
        identity: Name of the replica; every process appends a random suffix.
        duration: Seconds without a renewal after which another replica may take over.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        identity: str,
        *,
        duration: float = DURATION,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster, self._namespace, self._name = cluster, namespace, name
        self.identity = f"{identity}_{secrets.token_hex(4)}"
        self._duration, self._clock = duration, clock
        self._until = clock()
        self._seen: Manifest = {}
        self._seen_at = clock()
        self._told = ""

    @property
    def leads(self) -> bool:
        """Whether this replica is the leader now."""
        return self._clock() < self._until

    async def acquire(self, stop: asyncio.Event) -> bool:
        """Wait until this replica leads, and return True; return False if `stop` is set first."""
        while not stop.is_set():
            if await self.attempt():
                logger.info("%s is the leader", self.identity)
                return True
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), self._duration * RENEWS)
        return False

    async def keep(self) -> None:
        """Renew the Lease while this replica leads; return once it no longer does."""
        while self.leads:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._until - self._clock()):
                    await self.attempt()
                    await asyncio.sleep(self._duration * RENEWS)

    async def release(self) -> None:
        """Release the Lease, so that another replica can take over at once."""
        if not self.leads:
            return
        self._until = self._clock()
        try:
            lease = await self._cluster.get("Lease", self._namespace, self._name)
            spec = (lease or {}).get("spec") or {}
            if lease is not None and spec.get("holderIdentity") == self.identity:
                await self._cluster.replace({**lease, "spec": {**spec, "holderIdentity": ""}})
        except ClusterError as error:
            logger.warning("the Lease could not be released: %s", error)

    async def attempt(self) -> bool:
        """Acquire the Lease if that is possible, or renew it; return whether this replica leads."""
        begun = self._clock()  # from before the request: others measure from after it, so this replica stops first
        try:
            lease = await self._cluster.get("Lease", self._namespace, self._name)
            if lease is None:
                await self._cluster.create(self._lease({}))
            elif self._is_anothers(lease.get("spec") or {}):
                self._until = begun
                return False
            else:
                await self._cluster.replace({**lease, "spec": self._lease(lease.get("spec") or {})["spec"]})
        except ClusterError as error:
            if str(error) != self._told:
                self._told = str(error)
                logger.warning("the Lease could not be renewed: %s", error)
            return self.leads  # a renewal that fails does not end the last one early
        self._told = ""
        self._until = begun + self._duration * LEADS
        return self.leads

    def _is_anothers(self, spec: Manifest) -> bool:
        """Record the content of the Lease; return whether another replica may be the leader."""
        if spec != self._seen:
            self._seen, self._seen_at = spec, self._clock()
        if not spec.get("holderIdentity") or spec["holderIdentity"] == self.identity:
            return False
        duration = max(self._duration, spec.get("leaseDurationSeconds") or 0)
        return self._clock() < self._seen_at + duration

    def _lease(self, before: Manifest) -> Manifest:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        mine = before.get("holderIdentity") == self.identity
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace, "labels": dict(MANAGED_BY)},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": max(1, round(self._duration)),
                "acquireTime": before.get("acquireTime", now) if mine else now,
                "renewTime": now,
                "leaseTransitions": before.get("leaseTransitions", -1) + (not mine),
            },
        }
