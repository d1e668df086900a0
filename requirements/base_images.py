"""Pin the base image of each given Dockerfile to the digest that its tag has now: `make base-images`.

It writes the line

    FROM python:3.13-slim@sha256:... AS base

The tag stays for the next time; builds go by the digest, which is that of the index of all platforms, computed from
the bytes of the index. The script asks the registry that the image's name implies, anonymously, by the HTTP API of the
OCI distribution specification; without TLS only on this machine, as docker does.

With `--check` nothing is asked or written: it fails if a Dockerfile lacks a digest.
"""

import argparse
import hashlib
import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

BASE = re.compile(
    r"^FROM (?P<image>[^\s@]+):(?P<tag>[\w.-]+)(?P<digest>@sha256:[0-9a-f]{64})? AS base$", re.ASCII | re.MULTILINE
)
DEFAULT_REGISTRY = "registry-1.docker.io"
"""Where docker asks for an image whose name has no registry."""
INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
TIMEOUT = 30.0


class Dockerfile(NamedTuple):
    """A Dockerfile, and the line of it that names the base image."""

    path: Path
    text: str
    base: re.Match[str]

    @property
    def image(self) -> tuple[str, str]:
        """Name and tag of the base image."""
        return self.base["image"], self.base["tag"]


def main() -> None:
    """Pin the base images of the Dockerfiles that the command line names: all of them, or none."""
    parser = argparse.ArgumentParser(description="Pin the base images of Dockerfiles by digest.")
    parser.add_argument("--check", action="store_true", help="only fail if one has no digest")
    parser.add_argument("dockerfiles", nargs="+", type=Path)
    given = parser.parse_args()
    files = [read(path) for path in given.dockerfiles]
    if given.check:
        if unpinned := [str(file.path) for file in files if not file.base["digest"]]:
            raise SystemExit(f"no digest of the base image in {', '.join(unpinned)}: run make base-images")
        return
    digests = {image: digest(*image) for image in {file.image for file in files}}
    for file in files:
        name, tag = file.image
        line = f"FROM {name}:{tag}@{digests[file.image]} AS base"
        if line != file.base[0]:
            file.path.write_text(file.text.replace(file.base[0], line), encoding="utf-8")
            print(f"{file.path}: {line}")


def read(path: Path) -> Dockerfile:
    """Read a Dockerfile.

    Raises:
        SystemExit: If it does not name its base image in exactly one line.
    """
    text = path.read_text(encoding="utf-8")
    lines = list(BASE.finditer(text))
    if len(lines) != 1:
        raise SystemExit(f"{path} needs one line FROM IMAGE:TAG AS base")
    return Dockerfile(path, text, lines[0])


def digest(image: str, tag: str) -> str:
    """Return the digest of the index of an image for all platforms.

    Raises:
        SystemExit: If the registry cannot be reached, refuses, or has no such index.
    """
    registry, repository = located(image)
    scheme = "http" if registry.partition(":")[0] in ("localhost", "127.0.0.1") else "https"
    try:
        kind, index = fetched(f"{scheme}://{registry}/v2/{repository}/manifests/{tag}")
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{registry} does not give {repository}:{tag}: {type(error).__name__}: {error}") from error
    if kind not in INDEXES:
        raise SystemExit(f"{image}:{tag} is no index of platforms: {registry} has it as {kind}")
    return f"sha256:{hashlib.sha256(index).hexdigest()}"


def located(image: str) -> tuple[str, str]:
    """Return registry and repository of an image's name, by docker's rules."""
    first, slash, rest = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first, rest
    return DEFAULT_REGISTRY, image if slash else f"library/{image}"


def fetched(url: str) -> tuple[str, bytes]:
    """Return type and bytes of a manifest, with the token that the registry asks for."""
    request = urllib.request.Request(url, headers={"Accept": ", ".join(INDEXES)})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        challenge = dict(re.findall(r'(\w+)="([^"]*)"', error.headers.get("WWW-Authenticate", "")))
        if error.code != 401 or "realm" not in challenge:
            raise
        asked = urlencode({name: challenge[name] for name in ("service", "scope") if name in challenge})
        with urllib.request.urlopen(f"{challenge['realm']}?{asked}", timeout=TIMEOUT) as granted:
            token = json.load(granted)["token"]
        request.add_unredirected_header("Authorization", f"Bearer {token}")
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    with answer:
        return answer.headers.get_content_type(), answer.read()


if __name__ == "__main__":
    main()
