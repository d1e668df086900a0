"""A proxy before the API server that writes down what is asked of it, as whom it is told to, and can be away."""

import json
import os
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR
from ssl import create_default_context
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import yaml
from kube import kubectl


class Request(NamedTuple):
    """One request, in the words of RBAC."""

    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    status: int


class Proxy:
    """Listens on loopback for one client, and forwards everything with the token of a service account.

    Args:
        account: Namespace and name of the service account.
    """

    def __init__(self, account: tuple[str, str]) -> None:
        self.requests: list[Request] = []
        namespace, name = account
        self._token = kubectl("create", "token", name, "-n", namespace, "--duration=1h").strip()
        config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify"))
        cluster = config["clusters"][0]["cluster"]
        self._server = urlsplit(cluster["server"])
        authority = cluster.get("certificate-authority") or _file(cluster["certificate-authority-data"])
        self._context = create_default_context(cafile=authority)
        self._httpd: ThreadingHTTPServer | None = None
        self._port = 0

    @property
    def kubeconfig(self) -> dict[str, Any]:
        """A configuration whose cluster is this proxy."""
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{self._port}"}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
            "users": [{"name": "proxy", "user": {"token": "the proxy has one"}}],
        }

    def open(self) -> None:
        """Begin to listen, at the same port as before."""
        handler = type("Bound", (_Handler,), {"proxy": self})
        self._httpd = _Server(("127.0.0.1", self._port), handler)
        self._port = self._httpd.server_address[1]
        threading.Thread(target=self._httpd.serve_forever, daemon=True).start()

    def shut(self) -> None:
        """Stop listening, and end all open connections."""
        assert self._httpd is not None
        self._httpd.shutdown()
        self._httpd.server_close()
        for connection in list(self._httpd.connections):  # type: ignore[attr-defined]
            _cut(connection)

    def upstream(self) -> HTTPSConnection:
        """Return a connection to the real API server."""
        return HTTPSConnection(
            self._server.hostname or "", self._server.port or 443, context=self._context, timeout=400
        )

    def headers(self, given: Any) -> dict[str, str]:
        """Return the headers of a request, with the account's token in place of the client's."""
        kept = {
            key: value for key, value in given.items() if key.lower() not in ("host", "authorization", "connection")
        }
        return kept | {"Authorization": f"Bearer {self._token}", "Accept-Encoding": "identity"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *arguments: Any) -> None:
        self.connections: set[Any] = set()
        super().__init__(*arguments)

    def get_request(self) -> Any:
        request = super().get_request()
        self.connections.add(request[0])
        return request


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        connection = self.proxy.upstream()
        try:
            connection.request(self.command, self.path, body, self.proxy.headers(self.headers))
            answer = connection.getresponse()
            self.proxy.requests.append(parsed(self.command, self.path, answer.status))
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
            self.send_header("Connection", "close")
            self.end_headers()
            while part := answer.read1(65536):
                self.wfile.write(part)
                self.wfile.flush()
        except OSError:
            pass  # one of the two sides has gone
        finally:
            connection.close()
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815 # names of http.server

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


def parsed(method: str, path: str, status: int) -> Request:
    """Return a request in the words of RBAC."""
    parts = urlsplit(path)
    query = parse_qs(parts.query)
    words = parts.path.strip("/").split("/")
    group = "" if words[0] == "api" else words[1] if len(words) > 1 else ""
    rest = words[2:] if words[0] == "api" else words[3:]
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource, name = [*rest, "", ""][:2]
    if len(rest) > 2:
        resource = f"{resource}/{rest[2]}"
    watching = query.get("watch", ["false"])[0] in ("true", "1")
    verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    verb = verbs.get(method) or ("watch" if watching else "get" if name else "list")
    if not resource:
        verb, group = "discover", parts.path
    if not name and "fieldSelector" in query:
        name = query["fieldSelector"][0].removeprefix("metadata.name=")
    return Request(verb, group, resource, namespace, name, status)


def _cut(connection: Any) -> None:
    """Cut a connection."""
    with suppress(OSError):
        connection.shutdown(SHUT_RDWR)
    connection.close()


def _file(data: str) -> str:
    with NamedTemporaryFile("wb", suffix=".crt", delete=False) as file:
        file.write(b64decode(data))
    return file.name


@contextmanager
def operator_process(folder: Path, environment: dict[str, str], proxy: Proxy | None = None) -> Iterator[Any]:
    """Run the operator as a process of this machine, perhaps behind a proxy; yield the process and its log's path."""
    log = folder / "operator.log"
    environment = {**os.environ, **environment}
    if proxy is not None:
        config = folder / "kubeconfig"
        config.write_text(json.dumps(proxy.kubeconfig), encoding="utf-8")
        environment["KUBECONFIG"] = str(config)
    environment.pop("KUBERNETES_SERVICE_HOST", None)
    with log.open("a", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "channels_zmq_operator", "run"], env=environment, stdout=output, stderr=output
        )
        try:
            yield process, log
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
