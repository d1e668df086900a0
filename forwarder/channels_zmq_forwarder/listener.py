"""An HTTP listener of the forwarder: bounds of its connections, hosts that requests may name, headers of its responses.

A connection serves one request, lasts at most `AT_MOST` seconds, and ends once `CONNECTIONS` newer ones have been
accepted. So peers that open connections and send an incomplete request, or nothing, do not exhaust the descriptors, and
probes are answered meanwhile.
"""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

from aiohttp import web

from channels_zmq_forwarder.sockets import TCP, AddressError, is_local

CONNECTIONS = 100
"""Connections that a listener keeps open: a few probes and browsers need less than ten."""
AT_MOST = 10.0
"""Seconds that a connection lasts, from the handshake of TCP to the end of the response."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every response that does not set them itself."""
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_PORT = re.compile(r":[0-9]*$")


@asynccontextmanager
async def listening(address: str, routes: Iterable[web.RouteDef]) -> AsyncIterator[None]:
    """Serve routes while the block runs.

    On a loopback address the Host of a request must be the loopback, too: another name is that of a page whose owner
    points it at this machine, to read the response in a visitor's browser (DNS rebinding).

    Args:
        address: `HOST:PORT`; host `*` binds all interfaces.
        routes: What is served.

    Raises:
        AddressError: If the address cannot be bound.
    """
    host, _, port = address.rpartition(":")
    app = web.Application(middlewares=[_only_for({*LOOPBACK_HOSTS, host.lower()})] if is_local(TCP + address) else [])
    app.add_routes(routes)
    app.on_response_prepare.append(_finish_headers)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    connections: deque[asyncio.Transport] = deque()
    try:
        server = await asyncio.get_running_loop().create_server(
            lambda: _Arrival(runner, connections), None if host == "*" else host.strip("[]"), int(port)
        )
    except (OSError, UnicodeError) as error:
        await runner.cleanup()
        reason = error.strerror if isinstance(error, OSError) else "invalid host name"
        raise AddressError(f"cannot bind {address} (--admin-address or --status-address): {reason}") from error
    try:
        yield
    finally:
        server.close()
        await runner.cleanup()


class _Arrival(asyncio.Protocol):
    """Bounds a connection that has just been accepted, and hands it to the HTTP server.

    Args:
        runner: Of the HTTP server.
        connections: Those that the listener has accepted last, the oldest first; some may be closed.
    """

    def __init__(self, runner: web.AppRunner, connections: deque[asyncio.Transport]) -> None:
        self._runner, self._connections = runner, connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # that of a stream
        if self._runner.server is None:  # accepted while the listener is closed
            transport.abort()
            return
        self._connections.append(transport)
        if len(self._connections) > CONNECTIONS:
            self._connections.popleft().abort()  # harmless if it is closed
        asyncio.get_running_loop().call_later(AT_MOST, transport.abort)
        handler = self._runner.server()
        transport.set_protocol(handler)
        handler.connection_made(transport)


def _only_for(hosts: set[str]) -> Callable[..., Awaitable[web.StreamResponse]]:
    @web.middleware
    async def check(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        host = request.headers.get("Host")  # browsers send one, simple probes may not
        if host is not None and _PORT.sub("", host.lower()) not in hosts:
            return web.Response(text="this address serves only requests for localhost\n", status=421)
        return await handler(request)

    return check


async def _finish_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.force_close()
    response.headers["Connection"] = "close"
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
