"""The Kubernetes client, against a small server that records the requests and sends the answer that a test sets."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from kubernetes.aio import client

from channels_zmq_operator import cluster as module
from channels_zmq_operator.cluster import KINDS, Cluster, ClusterError, NamespaceEnding, RealCluster, connected
from channels_zmq_operator.models import KIND

UID = "u-1"
SERVICE = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "chat", "namespace": "home"}, "spec": {}}
HOOK = {
    "apiVersion": "admissionregistration.k8s.io/v1",
    "kind": "MutatingWebhookConfiguration",
    "metadata": {"name": "hook"},
}


class Server:
    """An API server, as far as a client can distinguish one."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.seen: list[web.Request] = []
        self.bodies: list[Any] = []
        self.status = 200
        self.answer: Any = SERVICE
        self.hangs, self.released = False, asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        self.seen.append(request)
        self.bodies.append(json.loads(text) if text else None)
        if self.hangs:
            await self.released.wait()
        content = self.answer if isinstance(self.answer, str) else json.dumps(self.answer)
        return web.Response(status=self.status, text=content, content_type="application/json")

    def last(self) -> tuple[str, str]:
        return self.seen[-1].method, self.seen[-1].path


@pytest.fixture
async def server(unused_tcp_port: int) -> AsyncIterator[Server]:
    found = Server(unused_tcp_port)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", found.handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    yield found
    await runner.cleanup()


@pytest.fixture
async def cluster(server: Server) -> AsyncIterator[RealCluster]:
    configuration = client.Configuration(host=server.url)
    async with client.ApiClient(configuration) as api:
        yield RealCluster(api)


def refusal(status: int, reason: str, message: str = "") -> dict[str, Any]:
    return {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": status}


@pytest.mark.parametrize(
    "kind, namespace, path",
    [
        ("Service", "home", "/api/v1/namespaces/home/services/x"),
        ("Deployment", "home", "/apis/apps/v1/namespaces/home/deployments/x"),
        (KIND, "home", "/apis/channels-zmq.io/v1alpha1/namespaces/home/zmqchannellayers/x"),
        ("Lease", "home", "/apis/coordination.k8s.io/v1/namespaces/home/leases/x"),
        (
            "MutatingWebhookConfiguration",
            "",
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/x",
        ),
    ],
)
async def test_a_kind_has_its_path(cluster: RealCluster, server: Server, kind: str, namespace: str, path: str) -> None:
    """A request for a kind uses the path of its API group directly, without discovery."""
    assert await cluster.get(kind, namespace, "x") == SERVICE
    assert [(one.method, one.path) for one in server.seen] == [("GET", path)]
    assert cluster.requests == 1


def test_every_kind_has_an_api_version_and_a_plural() -> None:
    """Every kind has a lower-case plural and a versioned API group, as Kubernetes requires."""
    for kind, where in KINDS.items():
        assert where.plural.startswith(kind.lower()[:-1]), kind
        assert where.api_version.rpartition("/")[2][0] == "v", kind


async def test_what_is_not_there_is_none(cluster: RealCluster, server: Server) -> None:
    """An object that does not exist is returned as None; any other refusal raises ClusterError."""
    server.status, server.answer = 404, refusal(404, "NotFound")
    assert await cluster.get("Service", "home", "x") is None
    server.status, server.answer = 403, refusal(403, "Forbidden", "not you")
    with pytest.raises(ClusterError, match="not you"):
        await cluster.get("Service", "home", "x")


@pytest.mark.parametrize(
    "namespace, path", [("", "/apis/apps/v1/deployments"), ("home", "/apis/apps/v1/namespaces/home/deployments")]
)
async def test_a_list_is_of_one_namespace_or_of_all(
    cluster: RealCluster, server: Server, namespace: str, path: str
) -> None:
    """A list selects by label, in one namespace or in all, and requests metadata only.

    Each item gets an apiVersion and a kind, which the server's list leaves out.
    """
    server.answer = {"kind": "PartialObjectMetadataList", "items": [{"metadata": {"name": "x"}, "spec": {}}]}
    assert [one async for one in cluster.metadata("Deployment", namespace, "owned")] == [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}}
    ]
    assert server.last() == ("GET", path)
    assert server.seen[-1].query == {"labelSelector": "owned", "limit": "50"}
    assert "as=PartialObjectMetadataList" in server.seen[-1].headers["Accept"]


async def test_an_empty_list_is_read(cluster: RealCluster, server: Server) -> None:
    """A list whose items are null is empty, since the API server sends null for an empty list of metadata."""
    server.answer = {"kind": "PartialObjectMetadataList", "metadata": {}, "items": None}
    assert [one async for one in cluster.metadata("ConfigMap", "")] == []


async def test_a_list_is_read_page_by_page(cluster: RealCluster, server: Server) -> None:
    """The next page of a list is requested only after the items of the previous page are used up."""
    server.answer = {"metadata": {"continue": "more"}, "items": [{"metadata": {"name": "x"}}]}
    found = cluster.metadata("ConfigMap", "")
    assert (await anext(found))["metadata"] == {"name": "x"}
    assert len(server.seen) == 1
    server.answer = {"metadata": {"continue": ""}, "items": [{"metadata": {"name": "y"}}]}
    assert (await anext(found))["metadata"] == {"name": "y"}
    assert server.seen[-1].query == {"continue": "more", "limit": "50"}
    assert [one async for one in found] == []
    assert len(server.seen) == 2


async def test_an_apply_is_server_side_and_forced(cluster: RealCluster, server: Server) -> None:
    """An apply sends the unchanged manifest under our field manager, with force, and returns the resulting object."""
    server.answer = {**SERVICE, "metadata": {**SERVICE["metadata"], "uid": UID}}  # type: ignore[dict-item]
    assert (await cluster.apply(SERVICE))["metadata"]["uid"] == UID
    assert server.last() == ("PATCH", "/api/v1/namespaces/home/services/chat")
    assert server.seen[-1].query == {"fieldManager": "channels-zmq-operator", "force": "true"}
    assert server.seen[-1].headers["Content-Type"] == "application/apply-patch+yaml"
    assert server.bodies[-1] == SERVICE
    await cluster.apply(HOOK)
    assert server.last() == ("PATCH", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hook")


async def test_a_status_is_applied_to_its_subresource(cluster: RealCluster, server: Server) -> None:
    """A status is applied to the path of the status subresource."""
    await cluster.apply({"kind": KIND, "metadata": {"name": "chat", "namespace": "home"}}, subresource="status")
    assert server.last()[1] == "/apis/channels-zmq.io/v1alpha1/namespaces/home/zmqchannellayers/chat/status"


async def test_events_and_leases_are_created_and_replaced(cluster: RealCluster, server: Server) -> None:
    """A creation is a POST without a name, and a replacement is a PUT with the object's name."""
    event = {"kind": "Event", "metadata": {"generateName": "chat-", "namespace": "home"}}
    await cluster.create(event)
    assert server.last() == ("POST", "/apis/events.k8s.io/v1/namespaces/home/events")
    lease = {"kind": "Lease", "metadata": {"name": "lease", "namespace": "home", "resourceVersion": "5"}}
    await cluster.replace(lease)
    assert server.last() == ("PUT", "/apis/coordination.k8s.io/v1/namespaces/home/leases/lease")
    assert server.bodies == [event, lease]


async def test_a_deletion_is_of_that_one_object(cluster: RealCluster, server: Server) -> None:
    """A deletion is conditional on the uid, and succeeds if that object is gone or another one has its name."""
    await cluster.delete("Service", "home", "chat", UID)
    assert server.last() == ("DELETE", "/api/v1/namespaces/home/services/chat")
    assert server.bodies[-1]["preconditions"] == {"uid": UID}
    for status in (404, 409):
        server.status, server.answer = status, refusal(status, "x")
        await cluster.delete("Service", "home", "chat", UID)
    server.status, server.answer = 403, refusal(403, "Forbidden")
    with pytest.raises(ClusterError):
        await cluster.delete("Service", "home", "chat", UID)


async def test_kinds_that_are_served(cluster: RealCluster, server: Server) -> None:
    """A kind is served if its group lists it, and is not if the group lacks it, is missing or is forbidden to read."""
    server.answer = {"resources": [{"name": "servicemonitors"}]}
    assert await cluster.serves("ServiceMonitor")
    assert server.last() == ("GET", "/apis/monitoring.coreos.com/v1")
    server.answer = {"resources": [{"name": "podmonitors"}]}
    assert not await cluster.serves("ServiceMonitor")
    for status in (403, 404):
        server.status, server.answer = status, refusal(status, "x")
        assert not await cluster.serves("ServiceMonitor")
    server.status = 500
    with pytest.raises(ClusterError):
        await cluster.serves("ServiceMonitor")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 500, 503])
async def test_a_refusal_tells_what_and_why(cluster: RealCluster, server: Server, status: int) -> None:
    """A refusal raises ClusterError with the request, the server's message, status and reason, and is not retried."""
    server.status, server.answer = status, refusal(status, "BecauseOfThis", "it is so")
    with pytest.raises(ClusterError) as caught:
        await cluster.apply(SERVICE)
    assert (caught.value.status, caught.value.reason) == (status, "BecauseOfThis")
    assert str(caught.value) == f"PATCH /api/v1/namespaces/home/services/chat: it is so ({status} BecauseOfThis)"
    assert len(server.seen) == cluster.requests == 1


async def test_a_namespace_that_is_being_deleted_is_an_error_of_its_own(cluster: RealCluster, server: Server) -> None:
    """A write into a terminating namespace raises NamespaceEnding, since nothing can be created in it any more."""
    causes = [{"reason": "NamespaceTerminating", "message": "namespace home is being terminated"}]
    server.status, server.answer = 403, {**refusal(403, "Forbidden", "no"), "details": {"causes": causes}}
    with pytest.raises(NamespaceEnding):
        await cluster.apply(SERVICE)


@pytest.mark.parametrize("answer", ["", "<html>", "[]", '{"kind": "Status"}', "null"])
async def test_a_refusal_without_words_is_one_too(cluster: RealCluster, server: Server, answer: str) -> None:
    """An error without a Status object raises ClusterError by its HTTP status: a proxy does not speak Kubernetes."""
    server.status, server.answer = 502, answer
    with pytest.raises(ClusterError) as caught:
        await cluster.apply(SERVICE)
    assert caught.value.status == 502
    assert caught.value.reason == "Bad Gateway"


@pytest.mark.parametrize("answer", ["", "<html>", "[]", "null", "5"])
async def test_an_answer_that_is_no_object_is_a_failure(cluster: RealCluster, server: Server, answer: str) -> None:
    """A successful response that is not a JSON object raises ClusterError, not an exception of another kind."""
    server.answer = answer
    with pytest.raises(ClusterError) as caught:
        await cluster.get("Service", "home", "x")
    assert caught.value.status == 0


async def test_a_server_that_is_away_is_a_failure_without_a_status(unused_tcp_port: int) -> None:
    """A refused connection raises ClusterError with status 0."""
    async with client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{unused_tcp_port}")) as api:
        cluster: Cluster = RealCluster(api)
        for call in (cluster.get("Service", "home", "x"), cluster.apply(SERVICE), cluster.serves(KIND)):
            with pytest.raises(ClusterError, match="ClientConnectorError") as caught:
                await call
            assert caught.value.status == 0


async def test_a_server_that_hangs_is_given_up(
    cluster: RealCluster, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request to a server that hangs raises ClusterError once the timeout for one request has passed."""
    monkeypatch.setattr(module, "TIMEOUT", 0.05)
    server.hangs = True
    with pytest.raises(ClusterError, match="Timeout") as caught:
        await cluster.apply(SERVICE)
    server.released.set()
    assert caught.value.status == 0


async def test_a_connection_that_breaks_is_a_failure(unused_tcp_port: int) -> None:
    """A connection that breaks in the middle of a response raises ClusterError with status 0."""

    async def broken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        writer.close()

    listening = await asyncio.start_server(broken, "127.0.0.1", unused_tcp_port)
    async with client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{unused_tcp_port}")) as api:
        with pytest.raises(ClusterError) as caught:
            await RealCluster(api).get("Service", "home", "x")
    listening.close()
    assert caught.value.status == 0


async def test_outside_of_a_pod_it_connects_by_kubeconfig(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of a pod, the client uses the current context of the kubeconfig file."""
    path = tmp_path / "config"
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": "it",
                "contexts": [{"name": "it", "context": {"cluster": "it", "user": "me"}}],
                "clusters": [{"name": "it", "cluster": {"server": server.url}}],
                "users": [{"name": "me", "user": {"token": "secret"}}],
            }
        )
    )
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    async with connected() as found:
        await found.get("Service", "home", "x")
    assert server.seen[-1].headers["Authorization"] == "Bearer secret"
