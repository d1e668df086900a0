"""Background jobs: a page's "/roll 2d6" is sent to the normal channel "jobs", and one worker runs it.

A job is a generator of steps. The worker sends the room's entry again after each step, so all members see the progress.
"""

import asyncio
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from channels.consumer import AsyncConsumer

from chat.rooms import Entry

CHANNEL = "jobs"
logger = logging.getLogger(__name__)


class JobsConsumer(AsyncConsumer):
    """The handlers of a worker for messages from the channel "jobs"."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause

    async def job_run(self, message: dict[str, Any]) -> None:
        """Run one job.

        Args:
            message: `job` and `argument` as `parse` returned them, `group` of the room and its `entry`.
        """
        entry: Entry = message["entry"]
        try:
            for step in JOBS[message["job"]](message["argument"]):
                if entry["revision"]:
                    await asyncio.sleep(self.pause)
                entry = revise(entry, step)
                await self.channel_layer.group_send(message["group"], {"type": "room.entry", "entry": entry})
        except Exception:  # a broken job must not end the worker: the others wait in the queue behind it
            logger.exception("The job %r failed", message["job"])
            failed = revise(entry, Step(1.0, "The worker could not do this."))
            await self.channel_layer.group_send(message["group"], {"type": "room.entry", "entry": failed})

    # A worker's consumer has a channel of its own too, so it learns of outages like any other. Its messages meanwhile
    # wait in the layer, so logging the outage is enough.

    async def layer_disconnected(self, message: dict[str, Any]) -> None:
        logger.warning("The channel layer is away")

    async def layer_reconnected(self, message: dict[str, Any]) -> None:
        logger.warning("The channel layer is back")


@dataclass(frozen=True, slots=True)
class Step:
    """The progress of a job, 0 to 1, and the result so far."""

    done: float
    result: str


@dataclass(frozen=True, slots=True)
class Command:
    """A job that a member requested."""

    job: str
    argument: str


class UnknownCommandError(ValueError):
    """A message starts with a slash but is not a command; the error's text is for its author."""


def parse(text: str) -> Command | None:
    """Return the command in a message, or None if it is an ordinary message.

    Raises:
        UnknownCommandError: If there is no such command; the text is a hint on valid commands.
    """
    if not text.startswith("/"):
        return None
    word, _, argument = text[1:].partition(" ")
    argument = argument.strip()
    if word == "roll":
        _dice(argument)
        return Command(word, argument)
    if word == "count" and argument:
        return Command(word, argument)
    raise UnknownCommandError("Write /roll 2d6 to roll dice, or /count and a text to count its words and letters.")


def revise(entry: Entry, step: Step) -> Entry:
    """Return the entry after a step, with a higher revision, which replaces the older one everywhere."""
    return {**entry, "revision": entry["revision"] + 1, "done": step.done, "result": step.result}


def roll(argument: str, randint: Callable[[int, int], int] = random.randint) -> Iterator[Step]:
    number, sides = _dice(argument)
    rolled: list[int] = []
    for _ in range(number):
        rolled.append(randint(1, sides))
        shown = " + ".join(map(str, rolled))
        total = f" = {sum(rolled)}" if number > 1 and len(rolled) == number else ""
        yield Step(len(rolled) / number, shown + total)


def count(argument: str) -> Iterator[Step]:
    words = len(argument.split())
    yield Step(1 / 3, f"{words} {'word' if words == 1 else 'words'}")
    letters = [char for char in argument.casefold() if char.isalpha()]
    lengths = f"{words} {'word' if words == 1 else 'words'}, {len(letters)} letters"
    yield Step(2 / 3, lengths)
    top = ", ".join(f"{char} × {times}" for char, times in Counter(letters).most_common(3))
    yield Step(1.0, f"{lengths}; most often: {top}" if top else lengths)


JOBS: dict[str, Callable[[str], Iterator[Step]]] = {"roll": roll, "count": count}


def _dice(argument: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{0,2})d(\d{1,3})", argument or "1d6", re.ASCII)
    number, sides = (int(match[1] or 1), int(match[2])) if match else (0, 0)
    if not 1 <= number <= 20 or sides < 2:
        raise UnknownCommandError("Dice are written as /roll 2d6: 1 to 20 of them, with 2 to 999 sides.")
    return number, sides
