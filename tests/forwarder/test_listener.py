"""Bounds, hosts and headers of an HTTP listener, with real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from channels_zmq_forwarder import listener
from channels_zmq_forwarder.listener import CONNECTIONS, HEADERS, listening

PATIENCE = 10
HALF = b"GET /livez HTTP/1.1\r\nHost: local"


async def alive(request: web.Request) -> web.Response:
    return web.Response(text="alive")


ROUTES = [web.get("/livez", alive)]


@pytest.fixture
async def port(unused_tcp_port: int) -> AsyncIterator[int]:
    async with listening(f"127.0.0.1:{unused_tcp_port}", ROUTES):
        yield unused_tcp_port


@pytest.fixture
async def open_peers(port: int) -> AsyncIterator[Callable[..., Awaitable[list[asyncio.StreamReader]]]]:
    """Return a function that opens connections, which send some bytes and then wait.

    It returns their readers, the oldest first.
    """
    writers = []

    async def connect(count: int, sent: bytes) -> list[asyncio.StreamReader]:
        readers = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            readers.append(reader)
            writers.append(writer)
        return readers

    yield connect
    for writer in writers:
        writer.transport.abort()


async def get(port: int, path: str = "/livez", **options: Any) -> tuple[int, Mapping[str, str]]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}", **options) as response:
        return response.status, response.headers


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    """Return the bytes that arrive before the connection ends."""
    received = b""
    try:
        async with asyncio.timeout(PATIENCE):
            while data := await reader.read(1000):
                received += data
    except ConnectionError:
        pass
    return received


@pytest.mark.parametrize("sent", [b"", HALF, b"POST /livez HTTP/1.1\r\nContent-Length: 9\r\n\r\n1"])
async def test_hundreds_of_half_requests_leave_room_for_a_probe(
    port: int, open_peers: Callable[..., Awaitable[list[asyncio.StreamReader]]], sent: bytes
) -> None:
    """Beyond a number of incomplete requests, the oldest connections are closed, so that `/livez` is answered at once.

    Their descriptors are free again.
    """
    readers = await open_peers(3 * CONNECTIONS, sent)
    async with asyncio.timeout(PATIENCE):
        assert (await get(port))[0] == 200
    for reader in readers[: 2 * CONNECTIONS]:
        await until_closed(reader)


@pytest.mark.parametrize("sent", [b"", HALF])
async def test_a_connection_that_does_not_complete_its_request_ends(
    unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """A connection that does not complete its request in a fixed time is closed, whether its peer sends or not."""
    monkeypatch.setattr(listener, "AT_MOST", 0.05)
    async with listening(f"127.0.0.1:{unused_tcp_port}", ROUTES):
        reader, writer = await asyncio.open_connection("127.0.0.1", unused_tcp_port)
        writer.write(sent)
        assert await until_closed(reader) == b""
        writer.close()


async def test_a_connection_serves_one_request(
    port: int, open_peers: Callable[..., Awaitable[list[asyncio.StreamReader]]]
) -> None:
    """A connection serves one request and announces its end, so that no idle keep-alive holds a descriptor."""
    (reader,) = await open_peers(1, b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n" * 2)
    received = await until_closed(reader)
    assert received.count(b"HTTP/1.1 200 OK") == 1
    assert b"\r\nConnection: close\r\n" in received


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8001", "127.0.0.1", "127.0.0.1:1", "[::1]:9600"])
async def test_a_loopback_listener_serves_requests_for_the_loopback(port: int, host: str) -> None:
    """A loopback listener serves loopback hosts with any port: `kubectl port-forward` and `docker -p` use their own."""
    assert (await get(port, headers={"Host": host}))[0] == 200


@pytest.mark.parametrize("host", ["attacker.example", "localhost.example:9600", "127.0.0.1.example", "", "[::1"])
async def test_a_loopback_listener_refuses_other_hosts(port: int, host: str) -> None:
    """A loopback listener refuses other hosts, which prevents DNS rebinding.

    A page of an attacker, whose name resolves to 127.0.0.1, cannot read a response.
    """
    assert (await get(port, headers={"Host": host}))[0] == 421
    assert (await get(port, "/absent", headers={"Host": host}))[0] == 421


async def test_a_probe_without_a_host_is_served(
    port: int, open_peers: Callable[..., Awaitable[list[asyncio.StreamReader]]]
) -> None:
    """A request without a host is served: HTTP/1.0 has none, and browsers always send one."""
    (reader,) = await open_peers(1, b"GET /livez HTTP/1.0\r\n\r\n")
    assert (await until_closed(reader)).startswith(b"HTTP/1.0 200 OK")


async def test_a_public_listener_serves_every_host(unused_tcp_port: int) -> None:
    """A public listener serves every host, since probes and Prometheus use addresses and names of the network."""
    async with listening(f"*:{unused_tcp_port}", ROUTES):
        assert (await get(unused_tcp_port, headers={"Host": "forwarder.example"}))[0] == 200


async def test_its_own_loopback_address_is_a_host(unused_tcp_port: int) -> None:
    """A listener serves its own loopback address, since all of 127.0.0.0/8 is the loopback."""
    address = f"127.0.0.2:{unused_tcp_port}"
    async with (
        listening(address, ROUTES),
        aiohttp.ClientSession() as session,
        session.get(f"http://{address}/livez") as response,
    ):
        assert response.status == 200


@pytest.mark.parametrize(
    "path, host, status", [("/livez", "localhost", 200), ("/absent", "localhost", 404), ("/livez", "x", 421)]
)
async def test_every_response_has_the_headers_of_security(port: int, path: str, host: str, status: int) -> None:
    """Every response, even an error, forbids sniffing, frames, referrers, caching and loading of resources."""
    found, headers = await get(port, path, headers={"Host": host})
    assert found == status
    assert {name: headers.get(name) for name in HEADERS} == HEADERS


async def test_another_method_is_refused_with_the_same_headers(port: int) -> None:
    """Another method is refused with the same headers, since the endpoints change nothing."""
    async with aiohttp.ClientSession() as session, session.post(f"http://127.0.0.1:{port}/livez") as response:
        assert response.status == 405
        assert {name: response.headers.get(name) for name in HEADERS} == HEADERS


async def test_a_closed_listener_accepts_nobody(unused_tcp_port: int) -> None:
    """A closed listener frees its port, even while a peer is still connected."""
    async with listening(f"127.0.0.1:{unused_tcp_port}", ROUTES):
        reader, writer = await asyncio.open_connection("127.0.0.1", unused_tcp_port)
    await until_closed(reader)
    writer.close()
    with socket.socket() as refused:
        assert refused.connect_ex(("127.0.0.1", unused_tcp_port)) != 0
