"""The pinning of base images, tested with a registry on the loopback that requires a token."""

import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = [ROOT / folder / "Dockerfile" for folder in ("forwarder", "operator", "examples/chat")]
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
SCOPE = "repository:library/python:pull"


class Registry(ThreadingHTTPServer):
    """Tags of one repository; each request needs the repository's token."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.tags = {"3.13-slim": (INDEX, b'{"manifests": []}')}
        self.host = f"127.0.0.1:{self.server_port}"
        self.image = f"{self.host}/library/python:3.13-slim"
        self.manifests = 0

    def digest(self, tag: str) -> str:
        return f"sha256:{hashlib.sha256(self.tags[tag][1]).hexdigest()}"


class Requests(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/token":
            good = parse_qs(url.query) == {"service": ["registry"], "scope": [SCOPE]}
            return self.answer(200, "application/json", json.dumps({"token": "t" if good else "other"}).encode())
        if self.headers.get("Authorization") != "Bearer t":
            realm = f'Bearer realm="http://{self.server.host}/token",service="registry",scope="{SCOPE}"'
            return self.answer(401, "application/json", b"{}", {"WWW-Authenticate": realm})
        self.server.manifests += 1
        tag = url.path.removeprefix("/v2/library/python/manifests/")
        if tag not in self.server.tags or INDEX not in self.headers["Accept"]:
            return self.answer(404, "application/json", b"{}")
        return self.answer(200, *self.server.tags[tag])

    def answer(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = Registry()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def dockerfiles(folder: Path, *images: str) -> list[Path]:
    """Write this project's Dockerfiles, with other base images."""
    paths = []
    for number, (source, image) in enumerate(zip(DOCKERFILES, images, strict=False)):
        text, count = re.subn(r"(?m)^FROM \S+ AS base$", f"FROM {image} AS base", source.read_text())
        assert count == 1
        paths.append(folder / f"Dockerfile.{number}")
        paths[-1].write_text(text)
    return paths


def pin(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "requirements" / "base_images.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def base(path: Path) -> str:
    (found,) = re.findall(r"(?m)^FROM (\S+) AS base$", path.read_text())
    return str(found)


def test_every_dockerfile_gets_the_digest_of_its_tag(registry: Registry, tmp_path: Path) -> None:
    """Every Dockerfile gets the digest beside the tag, in that line alone.

    One request reaches the registry for all of them, and a second run changes nothing.
    """
    paths = dockerfiles(tmp_path, *[registry.image] * 3)
    before = paths[0].read_text()
    assert pin(*paths).returncode == 0
    pinned = f"{registry.image}@{registry.digest('3.13-slim')}"
    assert [base(path) for path in paths] == [pinned] * 3
    assert paths[0].read_text() == before.replace(f"{registry.image} AS", f"{pinned} AS")
    assert registry.manifests == 1
    again = pin(*paths)
    assert (again.returncode, again.stdout) == (0, "")


def test_a_digest_follows_its_tag(registry: Registry, tmp_path: Path) -> None:
    """A digest is updated once its tag has moved."""
    paths = dockerfiles(tmp_path, registry.image)
    pin(*paths)
    former = base(paths[0])
    registry.tags["3.13-slim"] = (INDEX, b'{"manifests": [{}]}')
    assert pin(*paths).returncode == 0
    assert former != base(paths[0]) == f"{registry.image}@{registry.digest('3.13-slim')}"


@pytest.mark.parametrize(
    "tag, answer, said",
    [
        ("3.13-slim", (MANIFEST, b"{}"), "is no index of platforms"),
        ("3.13-slim", ("text/html", b"<html>"), "is no index of platforms"),
        ("3.14-slim", (INDEX, b"{}"), "does not give library/python:3.13-slim: HTTPError"),
    ],
)
def test_nothing_is_written_if_one_image_has_no_digest_for_all_platforms(
    registry: Registry, tmp_path: Path, tag: str, answer: tuple[str, bytes], said: str
) -> None:
    """Nothing is written if one image has no index of platforms.

    One platform's manifest would break the build on all others; an error page has a digest, too.
    """
    registry.tags = {"good": (INDEX, b"{}"), tag: answer}
    paths = dockerfiles(tmp_path, registry.image.replace("3.13-slim", "good"), registry.image)
    before = [path.read_text() for path in paths]
    done = pin(*paths)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.read_text() for path in paths] == before


def test_an_image_without_a_digest_is_named_by_the_check(registry: Registry, tmp_path: Path) -> None:
    """The check, which the release runs, names an image without a digest and sends no request to a registry."""
    paths = dockerfiles(tmp_path, registry.image, registry.image)
    pin(paths[0])
    asked = registry.manifests
    done = pin("--check", *paths)
    assert done.returncode == 1
    assert "Dockerfile.1" in done.stderr
    assert "Dockerfile.0" not in done.stderr
    pin(paths[1])
    assert pin("--check", *paths).returncode == 0
    assert registry.manifests == asked + 1


def test_all_images_have_one_base_that_a_build_argument_replaces() -> None:
    """All images have one base in a FROM of its own, as Dependabot reads no ARG; other stages begin with BASE."""
    assert len({base(path) for path in DOCKERFILES}) == 1
    for path in DOCKERFILES:
        stages = re.findall(r"(?m)^(?:ARG|FROM) .*", path.read_text())
        assert stages == ["ARG BASE=base", f"FROM {base(path)} AS base", "FROM ${BASE} AS build", "FROM ${BASE}"]
