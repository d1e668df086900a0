"""Messages under way while something happens to a layer: what arrives, and what does not."""

import json
from typing import Any

from kube import (
    CHAT_IMAGE,
    FORWARDER,
    LAYER_LABEL,
    Manifest,
    apply,
    conditions_of,
    ended,
    get,
    kubectl,
    logs,
    pod,
    program,
    programs,
    until,
)

LABELS = {LAYER_LABEL: "chat"}
MAP, VOLUME = programs()
RATE = 2000
"""Messages a second; a hundredth of it are jobs besides."""
GROUPS = "8"
"""Groups that they go to in turn, so that every forwarder carries some."""
PAUSE = 3.5
"""Seconds without a message that a forwarder which is killed or cut off may cost."""
OWNED = f"{FORWARDER},channels-zmq.io/owned-by=chat"


def nodes() -> list[str]:
    """Return the names of the nodes, that of the control plane first."""
    return sorted(one["metadata"]["name"] for one in get("nodes"))


class Traffic:
    """A sender's steady messages and jobs to two receivers, in pods of their own, all on the first node."""

    def __init__(self, namespace: str, image: str = CHAT_IMAGE) -> None:
        self._namespace, self._image = namespace, image
        self._node = {"kubernetes.io/hostname": nodes()[0]}

    def begin(self) -> None:
        """Return once messages are under way."""
        apply(MAP, *(self._pod(f"receiver-{n}", program("receive", GROUPS)) for n in (1, 2)), namespace=self._namespace)
        for number in (1, 2):
            self._has_said(f"receiver-{number}", "joined")
        sends = program("send", GROUPS, str(RATE))
        apply(self._pod("sender", sends), namespace=self._namespace)
        self._has_said("sender", "sending")

    def end(self) -> "Outcome":
        """End the sending, and return what came of it."""
        kubectl("exec", "sender", "-n", self._namespace, "--", "sh", "-c", "kill 1")
        said = [
            json.loads(ended(name, namespace=self._namespace).splitlines()[-1])
            for name in ("sender", "receiver-1", "receiver-2")
        ]
        return Outcome(said[0], said[1:])

    def _pod(self, name: str, container: Any) -> Any:
        runs = {**container, "image": self._image}
        return pod(name, runs, labels=LABELS, volumes=[VOLUME], nodeSelector=self._node)

    def _has_said(self, name: str, word: str) -> None:
        until(lambda: word in logs(name, namespace=self._namespace).splitlines(), f"{name} says {word}")


class Outcome:
    """What a sender and its receivers say at the end; no message may have come twice, or in another order.

    Attributes:
        lost: How many messages each receiver lacks.
        lost_jobs: How many accepted jobs were not received.
        unknown: How many jobs failed when they were sent.
        silence: Seconds for which a receiver had no message of a group at most.
        reconnects: Of each receiver.
    """

    def __init__(self, sent: dict[str, Any], receivers: list[dict[str, Any]]) -> None:
        assert sent["sent"] > RATE
        for one in receivers:
            assert (one["repeated"], one["disordered"]) == (0, 0), one
        jobs = [number for one in receivers for number in one["jobs"]]
        assert len(jobs) == len(set(jobs))
        assert set(jobs) <= {*sent["jobs"], *sent["unknown"]}
        self.lost = [sent["sent"] - one["received"] for one in receivers]
        self.lost_jobs = len(set(sent["jobs"]) - set(jobs))
        self.unknown = len(sent["unknown"])
        self.silence = max(one["silence"] for one in receivers)
        self.reconnects = [one["reconnects"] for one in receivers]
        print(
            f"{sent['sent']} messages, lost {self.lost}; {len(sent['jobs'])} jobs, lost {self.lost_jobs}, "
            f"unknown {self.unknown}; longest silence {self.silence:.2f} s; dropped {sent['dropped']}, "
            f"{[one['dropped'] for one in receivers]}"
        )

    @property
    def nothing_lost(self) -> bool:
        """Whether every message and every job came."""
        return self.lost == [0, 0] and self.lost_jobs == self.unknown == 0


def homes(selector: str, namespace: str) -> dict[str, str]:
    """Return the node of each pod that is not ending."""
    found = get("pods", namespace=namespace, selector=selector)
    return {
        one["metadata"]["name"]: one["spec"].get("nodeName", "")
        for one in found
        if "deletionTimestamp" not in one["metadata"]
    }


def forwarders(namespace: str) -> list[str]:
    """Return the pods of the layer's forwarders that are not ending."""
    return list(homes(OWNED, namespace))


def kill_one(namespace: str) -> str:
    """Kill a forwarder of the layer `chat`, which has no time to drain; return the name of its pod."""
    name = forwarders(namespace)[0]
    kubectl("delete", "pod", name, "-n", namespace, "--grace-period=0", "--force")
    return name


def replaced(killed: str, namespace: str) -> None:
    """Wait until the layer `chat` has another forwarder instead of one that was killed.

    Its status may be from before the kill.
    """
    number = get("zcl", "chat", namespace=namespace)["spec"]["forwarders"]

    def is_replaced() -> bool:
        found = get("pods", namespace=namespace, selector=OWNED)
        names = {one["metadata"]["name"] for one in found}
        return killed not in names and len(found) == number and all(map(is_ready, found))

    until(is_replaced, f"another forwarder instead of {killed}", patience=180)
    complete(namespace)


def is_ready(one: Manifest) -> bool:
    """Return whether a pod or a layer is ready."""
    return conditions_of(one).get("Ready", {}).get("status") == "True"


def reachable(namespace: str) -> set[str]:
    """Return the addresses to which the name of the layer `chat` resolves."""
    slices = get("endpointslices", namespace=namespace, selector="kubernetes.io/service-name=chat-forwarder")
    return {address for one in slices for each in one.get("endpoints") or () for address in each["addresses"]}


def is_complete(one: Manifest) -> bool:
    """Return whether the status of a layer says that all its forwarders are ready, and none is being replaced."""
    found = {kind: each["status"] for kind, each in conditions_of(one).items()}
    return (found.get("Ready"), found.get("Progressing")) == ("True", "False")


def complete(namespace: str, name: str = "chat") -> None:
    """Wait until a layer is as its spec says, and nothing changes any more."""

    def settled() -> bool:
        wanted = get("zcl", name, namespace=namespace)
        status = wanted.get("status") or {}
        return bool(
            status.get("observedGeneration") == wanted["metadata"]["generation"]
            and is_complete(wanted)
            and status["replicas"] == wanted["spec"]["forwarders"]
        )

    until(settled, f"the layer {name} is complete", patience=180)
