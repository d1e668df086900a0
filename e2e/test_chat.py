"""The example chat on the cluster: real web pods, a real worker, real WebSockets."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from kube import forwarded, get, kubectl, rolled_out, until
from releases import ROOT
from streams import complete, kill_one, replaced

sys.path.insert(0, str(ROOT / "examples" / "chat"))

from conversation import Person, converse

pytestmark = pytest.mark.usefixtures("installed")
Sites = list[str]


@pytest.fixture
def sites(namespace: str) -> Iterator[Sites]:
    """The addresses of two web pods, behind a layer that has both its forwarders."""
    kubectl("apply", "-n", namespace, "-f", str(ROOT / "examples" / "chat" / "kubernetes.yaml"))
    for name in ("chat-web", "chat-worker"):
        rolled_out(name, namespace=namespace)
    complete(namespace)
    pods = [one["metadata"]["name"] for one in get("pods", namespace=namespace, selector="app=chat-web")]
    assert len(pods) == 2
    with ExitStack() as stack:
        yield [
            f"http://127.0.0.1:{stack.enter_context(forwarded(f'pod/{name}', 8000, namespace=namespace))}"
            for name in pods
        ]


def test_people_on_two_pods_talk_and_a_worker_rolls_their_dice(sites: Sites) -> None:
    """Group messages, direct sends and a job by a normal channel, and how long a message takes."""
    first, second = sites
    print(asyncio.run(converse(first, second, messages=100)))


def test_the_chat_goes_on_when_a_forwarder_is_killed(sites: Sites, namespace: str) -> None:
    """Messages arrive by the other forwarder, and jobs are done afterwards."""

    async def scenario() -> None:
        async with Person(sites[0], "room", "Ada") as ada, Person(sites[1], "room", "Bo") as bo:
            await bo.sees(await ada.says("before"))
            killed = await asyncio.to_thread(kill_one, namespace)
            # They talk on until the forwarder is replaced: a page that nobody reads from loses its connection.
            replacing = asyncio.create_task(asyncio.to_thread(replaced, killed, namespace))
            said = 0
            while said < 20 or not replacing.done():
                key = await ada.says(f"meanwhile, {said}")
                await asyncio.gather(ada.sees(key), bo.sees(key))
                said += 1
                await asyncio.sleep(0.1)  # as fast as a person types
            await replacing
            # A job that waits in a killed forwarder is lost: this one is sent once that is certainly gone.
            await ada.sees(await bo.says("/roll 2d6"), finished=True)

    asyncio.run(scenario())


def test_the_chat_goes_on_after_its_only_forwarder_was_killed(sites: Sites, namespace: str) -> None:
    """Pages learn of the outage and of its end; what is said afterwards arrives, and jobs are done."""
    kubectl("scale", "zcl/chat", "-n", namespace, "--replicas=1")
    complete(namespace)

    async def scenario() -> None:
        async with Person(sites[0], "room", "Ada") as ada, Person(sites[1], "room", "Bo") as bo:
            await bo.sees(await ada.says("before"))
            await asyncio.to_thread(kill_one, namespace)
            for person in (ada, bo):
                await person.learns_of_the_layer(up=False)
            for person in (ada, bo):
                await person.learns_of_the_layer(up=True)
            await bo.sees(await ada.says("after"))
            await ada.sees(await bo.says("/roll 2d6"), finished=True)

    asyncio.run(scenario())


def test_the_chat_talks_to_itself_inside_the_cluster(sites: Sites, namespace: str) -> None:
    """As docs/kubernetes.md lets it do."""
    said = kubectl(
        "exec", "-n", namespace, "deploy/chat-web", "--", "python", "conversation.py", "http://chat-web:8000"
    )
    assert "messages from page to page: p50" in said
    print(said)


def test_more_web_pods_join_the_conversation(sites: Sites, namespace: str) -> None:
    """A pod that comes later has the layer like the first ones."""
    kubectl("scale", "deploy/chat-web", "-n", namespace, "--replicas=3")
    rolled_out("chat-web", namespace=namespace)
    known = {one["metadata"]["name"] for one in get("pods", namespace=namespace, selector="app=chat-web")}
    newest = until(
        lambda: max(
            get("pods", namespace=namespace, selector="app=chat-web"),
            key=lambda one: one["metadata"]["creationTimestamp"],
        ),
        "the newest pod",
    )["metadata"]["name"]
    assert newest in known
    with forwarded(f"pod/{newest}", 8000, namespace=namespace) as port:
        asyncio.run(converse(sites[0], f"http://127.0.0.1:{port}", messages=20))
