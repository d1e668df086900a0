"""The checks of the pages: their Python, the tests that they name, and the tutorial, run as written."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from forwarders import PATIENCE, free_ports
from websockets.asyncio.client import connect
from websockets.typing import Origin

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```", re.MULTILINE | re.DOTALL)
TEST = re.compile(r"`((?:tests|e2e)/[\w/]+\.py)(?:::(\w+))?`")
AT_THE_END = ", at the end"


def fences(page: Path) -> Iterator[tuple[str, str, str]]:
    """Return the language, the title and the text of each block of code."""
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        yield match[1], match[2] or "", match[3]


PYTHON = [
    pytest.param(text, id=f"{page.name}-{number}")
    for page in PAGES
    for number, (language, _, text) in enumerate(fences(page))
    if language == "python"
]


@pytest.mark.parametrize("text", PYTHON)
def test_python_in_pages_is_python(text: str) -> None:
    """Every Python block of the pages compiles, even a part of a dictionary or one with dots for omissions."""
    whole = f"{{{text}}}" if text.startswith('"') else text
    compile(whole.replace("{..., ", "{").replace("[..., ", "[").replace("(...):", "():"), "page", "exec")


def test_the_tests_that_pages_name_exist() -> None:
    """Every test file and test function that a page names exists."""
    named = [(page.name, *found) for page in PAGES for found in TEST.findall(page.read_text(encoding="utf-8"))]
    assert len(named) > 50
    for page, path, name in named:
        assert (ROOT / path).is_file(), f"{page}: {path}"
        assert not name or f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{page}: {path}::{name}"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Create the tutorial's project as its page describes it."""
    manage = [sys.executable, "-m", "django"]
    subprocess.run([*manage, "startproject", "mysite", str(tmp_path)], check=True)
    subprocess.run([*manage, "startapp", "chat"], cwd=tmp_path, check=True)
    for _, title, text in fences(ROOT / "docs" / "tutorial.md"):
        if title:
            path = tmp_path / title.removesuffix(AT_THE_END)
            path.parent.mkdir(parents=True, exist_ok=True)
            before = path.read_text(encoding="utf-8") if title.endswith(AT_THE_END) else ""
            path.write_text(f"{before}\n{text}", encoding="utf-8")
    return tmp_path


async def until_served(address: str) -> str:
    """Return a page, once it is served."""
    loop = asyncio.get_running_loop()
    end = loop.time() + PATIENCE
    while True:
        try:
            return await asyncio.to_thread(lambda: urlopen(address, timeout=5).read().decode())
        except (URLError, ConnectionError):
            assert loop.time() < end, f"nobody serves {address}"
            await asyncio.sleep(0.1)


def test_the_tutorial_names_the_clone_from_where_its_reader_is() -> None:
    """The tutorial's paths to the clone are relative to its parent, and to the project after `cd mysite`."""
    shell = "".join(text for _, _, text in fences(ROOT / "docs" / "tutorial.md") if text.count("pip install"))
    before, _, after = shell.partition("cd mysite")
    assert re.findall(r"[./]+/channels-zmq", before) == ["./channels-zmq"] * 2
    assert re.findall(r"[./]+/channels-zmq", after) == ["../channels-zmq"]


async def test_the_tutorial_makes_a_chat_that_works(project: Path) -> None:
    """The tutorial's chat works under daphne: browsers in one room get each other's messages, and no others do."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CHANNELS_ZMQ_")}
    checked = [sys.executable, "manage.py", "check", "--fail-level", "WARNING"]
    subprocess.run(checked, cwd=project, env=environment, check=True)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "daphne", "-p", str(port), "mysite.asgi:application"]
    with subprocess.Popen(command, cwd=project, env=environment) as daphne:
        try:
            assert "<title>lobby</title>" in await until_served(f"http://127.0.0.1:{port}/chat/lobby/")
            sockets = f"ws://127.0.0.1:{port}/ws/chat"
            origin = Origin(f"http://127.0.0.1:{port}")
            async with (
                connect(f"{sockets}/lobby/", origin=origin, proxy=None) as ada,
                connect(f"{sockets}/lobby/", origin=origin, proxy=None) as bo,
                connect(f"{sockets}/kitchen/", origin=origin, proxy=None) as cy,
            ):
                await ada.send(json.dumps({"text": "hello"}))
                for one in (ada, bo):
                    assert json.loads(await asyncio.wait_for(one.recv(), PATIENCE)) == {"text": "hello"}
                await cy.send(json.dumps({"text": "tea"}))
                assert json.loads(await asyncio.wait_for(cy.recv(), PATIENCE)) == {"text": "tea"}
        finally:
            daphne.terminate()
