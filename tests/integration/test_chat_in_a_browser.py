"""The example chat as users see it: Chromium, a forwarder, two web processes and a worker.

No step waits for a fixed time: each waits for something that the page shows.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import CHROMIUM
from forwarders import Forwarder, free_ports
from playwright.async_api import Browser, Locator, Page, ViewportSize, expect

CHAT = Path(__file__).parents[2] / "examples" / "chat"
PATIENCE = 20.0  # seconds
BEAT = 0.5  # seconds between the signs of life of a member
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing: apt-get install chromium"),
]


class Stack:
    """The processes of the chat, each at an address that it keeps when it is started again."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        pull, pub, *self._ports = free_ports(4)
        self.forwarder = Forwarder(f"tcp://127.0.0.1:{pull}", f"tcp://127.0.0.1:{pub}", log=self.log("forwarder"))
        self._layer = {
            "CHANNELS_ZMQ_PULL_SOCKET_ADDRESS": self.forwarder.pull,
            "CHANNELS_ZMQ_PUB_SOCKET_ADDRESS": self.forwarder.pub,
            "CHAT_BEAT_SECONDS": str(BEAT),
            "CHAT_JOB_PAUSE": "0.1",
        }

    def site(self, number: int) -> str:
        return f"http://127.0.0.1:{self._ports[number - 1]}"

    def start_all(self) -> None:
        self.forwarder.start()
        self.start("worker", "manage.py", "runworker", "jobs")
        self.start_web(1)
        self.start_web(2)

    def start_web(self, number: int) -> None:
        name, port = f"web{number}", str(self._ports[number - 1])
        uvicorn = ("-m", "uvicorn", "chat.asgi:application", "--timeout-graceful-shutdown", "2")
        self.start(name, *uvicorn, "--port", port)
        self.wait_until_ready(name, f"{self.site(number)}/healthz/")

    def start(self, name: str, *arguments: str) -> None:
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=CHAT,
                env={**os.environ, **self._layer, "CHAT_PROCESS": name},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        process = self._running.pop(name)
        process.send_signal(number)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def stop_all(self) -> None:
        """Stop the processes that run, the one started last first."""
        for name in reversed(list(self._running)):
            self.stop(name)
        self.forwarder.end()

    def wait_until_ready(self, name: str, address: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not answers(address):
            if self._running[name].poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{name} did not start:\n{self.log(name).read_text()}")
            time.sleep(0.05)

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"


def answers(address: str) -> bool:
    try:
        with NO_PROXY.open(address, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("chat"))
    try:
        stack.start_all()
        yield stack
    finally:
        stack.stop_all()


class Person:
    """A user of a page in a separate browser context."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.log: Locator = page.get_by_role("log")
        self.people: Locator = page.get_by_role("region", name="Here now")
        self.layer_banner: Locator = page.locator("#layer-banner")
        self.socket_banner: Locator = page.locator("#socket-banner")
        self.pending: Locator = page.locator(".pending")

    async def says(self, text: str) -> None:
        await self.page.get_by_label("Your message").fill(text)
        await self.page.keyboard.press("Enter")

    async def sees(self, text: str) -> None:
        await expect(self.log).to_contain_text(text)


async def enter(browser: Browser, site: str, name: str, room: str, *, phone: bool = False) -> Person:
    """Enter a room by the landing page, and wait until it is live."""
    screen = ViewportSize(width=390, height=844) if phone else ViewportSize(width=1280, height=800)
    context = await browser.new_context(viewport=screen, has_touch=phone, is_mobile=phone)
    page = await context.new_page()
    page.on("pageerror", lambda error: pytest.fail(f"{name}'s page: {error}"))
    await page.goto(f"{site}/")
    await page.get_by_label("Your name").fill(name)
    await page.get_by_label("Room").fill(room)
    await page.keyboard.press("Enter")
    await expect(page.locator("#state")).to_contain_text("Live")
    return Person(page)


async def enter_both(browser: Browser, stack: Stack, room: str) -> tuple[Person, Person]:
    """Return Ada on the first web process and Bo on the second, once each of them sees the other."""
    ada = await enter(browser, stack.site(1), "Ada", room)
    bo = await enter(browser, stack.site(2), "Bo", room)
    await expect(ada.people).to_contain_text("Bo")
    await expect(bo.people).to_contain_text("Ada")
    return ada, bo


async def test_two_people_on_two_web_processes_talk(browser: Browser, stack: Stack) -> None:
    """A message of Ada arrives at Bo; each of them sees the other's process, and that the other one types."""
    ada, bo = await enter_both(browser, stack, "talk")
    await expect(ada.people).to_contain_text("web2")
    await ada.says("Hello from the first process")
    await bo.sees("Hello from the first process")
    await expect(ada.pending).to_have_count(0)
    await bo.page.get_by_label("Your message").press_sequentially("Hm")
    await expect(ada.page.locator("#typing")).to_have_text("Bo is typing…")


async def test_a_job_of_the_worker_is_seen_by_both(browser: Browser, stack: Stack) -> None:
    """The worker's process gets the command, and both pages show its progress and the same result."""
    ada, bo = await enter_both(browser, stack, "jobs")
    await ada.says("/roll 5d6")
    for person in (ada, bo):
        await expect(person.log.get_by_role("progressbar", name="Progress of the job")).to_be_visible()
    for person in (ada, bo):
        await expect(person.log.locator(".job.done .result")).to_contain_text(" = ")
    results = [await person.log.locator(".result").inner_text() for person in (ada, bo)]
    assert results[0] == results[1]


async def test_a_wrong_command_comes_back_to_its_author(browser: Browser, stack: Stack) -> None:
    """The author of a wrong command sees a hint, and the text in the field again to correct it."""
    ada = await enter(browser, stack.site(1), "Ada", "wrong")
    await ada.says("/dance")
    await expect(ada.page.get_by_role("alert")).to_contain_text("/roll 2d6")
    await expect(ada.page.get_by_label("Your message")).to_have_value("/dance")


async def test_a_late_comer_gets_the_history(browser: Browser, stack: Stack) -> None:
    """A new member gets the history from a member on another process, because nothing is stored anywhere."""
    ada = await enter(browser, stack.site(1), "Ada", "late")
    for number in range(3):
        await ada.says(f"before Bo came {number}")
    await expect(ada.pending).to_have_count(0)
    bo = await enter(browser, stack.site(2), "Bo", "late")
    await expect(bo.log.locator(".text")).to_have_text([f"before Bo came {number}" for number in range(3)])


async def test_a_closed_tab_leaves_the_room(browser: Browser, stack: Stack) -> None:
    """Closing a tab removes its user from the room, as closing the WebSocket is enough."""
    ada, bo = await enter_both(browser, stack, "tab")
    await bo.page.close()
    await ada.sees("Bo left")
    await expect(ada.people).not_to_contain_text("Bo")


async def test_a_restarted_forwarder_is_seen_and_loses_nothing(browser: Browser, stack: Stack) -> None:
    """Both pages show that the layer is away; messages written meanwhile arrive when it is back, as do later ones."""
    ada, bo = await enter_both(browser, stack, "outage")
    assert stack.forwarder.end() == 0
    for person in (ada, bo):
        await expect(person.layer_banner).to_contain_text("away")
    await ada.says("said during the outage")
    await expect(ada.pending).to_contain_text("Waits for the channel layer")
    stack.forwarder.start()
    for person in (ada, bo):
        await expect(person.layer_banner).to_be_hidden()
        await person.sees("said during the outage")
    await expect(ada.pending).to_have_count(0)
    await bo.says("and we go on")
    await ada.sees("and we go on")
    await bo.says("/roll 2d6")
    await expect(ada.log.locator(".job.done .result")).to_contain_text(" = ")
    await expect(ada.people).to_contain_text("Bo")


async def test_a_killed_web_process_loses_its_people_and_gets_them_back(browser: Browser, stack: Stack) -> None:
    """A killed web process removes its users and keeps their typed text, and they return when it is back.

    Its page shows the outage, and the others see that a member is gone.
    """
    ada, bo = await enter_both(browser, stack, "killed")
    await ada.says("before")
    await bo.sees("before")
    stack.stop("web2", signal.SIGKILL)
    await expect(bo.socket_banner).to_contain_text("does not answer")
    await ada.sees("Bo is gone")
    await expect(ada.people).not_to_contain_text("Bo")
    await bo.says("said without a server")
    await ada.says("said to nobody")
    stack.start_web(2)
    await ada.sees("said without a server")
    await bo.sees("said to nobody")
    await expect(bo.pending).to_have_count(0)
    await expect(ada.people).to_contain_text("Bo")


async def test_a_shared_link_asks_for_a_name(browser: Browser, stack: Stack) -> None:
    """The address of a room contains no name, so a person who opens a shared link is asked for one."""
    ada = await enter(browser, stack.site(1), "Ada", "shared room")
    assert ada.page.url == f"{stack.site(1)}/room/shared%20room/"
    page = await (await browser.new_context()).new_page()
    await page.goto(ada.page.url)
    await page.get_by_role("dialog", name="Who are you?").get_by_role("textbox").fill("Bo")
    await page.keyboard.press("Enter")
    await expect(ada.people).to_contain_text("Bo")


async def test_the_room_fits_on_a_phone(browser: Browser, stack: Stack) -> None:
    """On a phone nothing overflows to the side, the buttons are on the screen, and each is at least 40 pixels large."""
    ada = await enter(browser, stack.site(1), "Ada", "phone", phone=True)
    await ada.says("a" * 300)
    await expect(ada.pending).to_have_count(0)
    assert await ada.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for name in ("Send", "Roll two dice"):
        await expect(ada.page.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
        box = await ada.page.get_by_role("button", name=name).bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= 40


async def test_the_room_works_by_keyboard(browser: Browser, stack: Stack) -> None:
    """The field has the focus, Tab moves it to the dice and on to Send, and Space presses Send."""
    ada = await enter(browser, stack.site(1), "Ada", "keys")
    await expect(ada.page.get_by_label("Your message")).to_be_focused()
    await ada.page.keyboard.type("by keys only")
    await ada.page.keyboard.press("Tab")
    await expect(ada.page.get_by_role("button", name="Roll two dice")).to_be_focused()
    await ada.page.keyboard.press("Tab")
    await ada.page.keyboard.press("Space")
    await ada.sees("by keys only")
