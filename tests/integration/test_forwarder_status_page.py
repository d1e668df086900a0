"""The status page as users see it, in Chromium."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

from channels_zmq_forwarder import __version__, wire
from channels_zmq_forwarder.admin import Admin
from channels_zmq_forwarder.exchange import Exchange
from channels_zmq_forwarder.pump import Traffic
from channels_zmq_forwarder.wire import State

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-proxy-server", "--disable-background-networking"]
A = b"a" * 16

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing: apt-get install chromium"),
]


@pytest.fixture
async def open_page() -> AsyncIterator[Callable[[str], Awaitable[Page]]]:
    """Return a function that opens a page as wide as a phone, and fail if a script of it has an error."""
    errors = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        async def go(address: str) -> Page:
            page = await browser.new_page(viewport={"width": 360, "height": 740}, color_scheme="dark")
            page.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108 - playwright marks the handler
            await page.goto(address)
            return page

        yield go
        await browser.close()
    assert errors == []


async def test_the_page_shows_what_happens_and_when_nothing_answers(
    open_page: Callable[[str], Awaitable[Page]], unused_tcp_port: int
) -> None:
    """The page updates state, numbers, queues, groups and drops by itself, and shows when nothing answers.

    Names that clients choose appear as text and never as HTML.
    """
    exchange, traffic = Exchange(b"instance"), Traffic()
    admin = Admin(exchange, traffic)
    address = f"127.0.0.1:{unused_tcp_port}"
    async with admin.serving(address):
        page = await open_page(f"http://{address}/")
        await expect(page.locator("#state")).to_have_text("settling")
        await expect(page.locator("#about")).to_contain_text(f"Version {__version__}")
        await expect(page.get_by_text("Nothing was dropped.")).to_be_visible()

        exchange.enter(State.SERVING)
        exchange.upstream(b"\1" + wire.group_topic("<img src=x onerror=alert(1)>"))
        exchange.inbound(wire.ENQUEUE.encode(wire.Enqueue(A, 1, 60_000, 10, b"n" * 99, b"")))
        exchange.inbound(b"?")
        exchange.upstream(b"\1" + wire.inbox_topic(A))
        known = wire.encode_forwarders([wire.KnownForwarder(b"tcp://a:1", b"tcp://a:2", True, b"")])
        exchange.upstream(wire.HELLO.encode(wire.Hello(A, wire.VERSION, 1, 0, known)))
        exchange.inbound(wire.WINDOW.encode(wire.Window(A, 12, 3)))
        traffic.frames_in += 3_000_000
        await expect(page.locator("#state")).to_have_text("serving")
        await expect(page.locator("#waiting")).to_have_text("1")
        await expect(page.locator("#group-list li")).to_have_text("<img src=x onerror=alert(1)>")
        await expect(page.locator("#queues tbody tr")).to_contain_text("n" * 99)
        await expect(page.locator("#drops tbody tr")).to_contain_text("malformed")
        await expect(page.locator("#forwarders tbody tr")).to_have_text("tcp://a:1, tcp://a:211")
        await expect(page.locator("#windows tbody tr")).to_have_text(f"{A.decode()}123")
        await expect(page.locator("#frames_in-line path.line")).to_have_attribute("d", re.compile(r",1\.00"))
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    await expect(page.locator("#state")).to_have_text("not answering")
    await expect(page.get_by_role("alert")).to_contain_text("has not answered since")

    async with admin.serving(address):
        await expect(page.locator("#state")).to_have_text("serving")
        await expect(page.get_by_role("alert")).to_be_hidden()
