"""The processes of the dedicated demo: started, their log lines prefixed, watched, and stopped in order."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

PATIENCE = 5.0  # seconds within which a child must exit after each signal
COLOURS = (36, 32, 33, 35)  # of a terminal: cyan, green, yellow, magenta


@dataclass(frozen=True, slots=True)
class Child:
    """A running process, and the tasks that print its lines and report its end."""

    name: str
    process: asyncio.subprocess.Process
    printing: asyncio.Task[None]
    watching: asyncio.Task[None]


class Children:
    """A context that stops the children when it ends, the child that started last first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[Child] = []
        self._colours: dict[str, int] = {}
        self._ended: asyncio.Queue[str] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for child in reversed(self._children):
            await _stop(child)

    async def start(self, name: str, *arguments: str, environment: Mapping[str, str]) -> None:
        """Start `python arguments...` under a name for its log lines."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            cwd=self._folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # A terminal sends Ctrl-C to its whole process group; the order of stopping is decided here.
            start_new_session=True,
        )
        colour = self._colours.setdefault(name, COLOURS[len(self._colours) % len(COLOURS)])
        printing = asyncio.create_task(_print_lines(process, _prefix(name, colour)))
        child = Child(name, process, printing, asyncio.create_task(self._watch(name, process)))
        self._children.append(child)

    async def kill(self, name: str) -> None:
        """Kill a child that may be started again."""
        child = next(one for one in self._children if one.name == name)
        child.watching.cancel()
        self._children.remove(child)
        child.process.kill()
        await child.process.wait()
        await child.printing

    async def first_to_end(self) -> str:
        """Wait until a child ends that was not killed here, and return a message about it."""
        return await self._ended.get()

    async def _watch(self, name: str, process: asyncio.subprocess.Process) -> None:
        self._ended.put_nowait(f"{name} ended with code {await process.wait()}")


async def _stop(child: Child) -> None:
    child.watching.cancel()
    # SIGINT first: every child exits in order at it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            child.process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.process.wait(), PATIENCE)
            break
    await child.printing


async def _print_lines(process: asyncio.subprocess.Process, prefix: str) -> None:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        print(prefix + line.decode(errors="replace").rstrip(), flush=True)


def _prefix(name: str, colour: int) -> str:
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ
    return f"{name:<10} | " if plain else f"\033[{colour}m{name:<10} |\033[0m "
