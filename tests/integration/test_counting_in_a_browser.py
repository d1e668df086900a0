"""The page of `make demo` that kills forwarders while it counts messages, as users see it.

With SCREENSHOTS=FOLDER the test saves a picture of the page in that folder: `make screenshots`.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import CHROMIUM
from playwright.async_api import Browser, Page, expect

DEMO = Path(__file__).parents[2] / "examples" / "chat" / "demo.py"
KILLS = 3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is missing: apt-get install chromium"),
]


@pytest.fixture
def address() -> Iterator[str]:
    """Run the demo, and return the address of its page."""
    command = [sys.executable, str(DEMO), "dedicated", "--messages", "2", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        lines = iter(demo.stdout.readline, "")
        found = next(found for line in lines if (found := re.search(r"http://[^ ]*/counting/", line)))
        assert any("Ctrl-C ends it" in line for line in lines)
        yield found.group()
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=30)
    assert demo.returncode == 0


async def counts(page: Page) -> dict[str, list[str]]:
    rows = await page.locator("#counts tr").all()
    cells = [await row.locator("th, td").all_inner_texts() for row in rows]
    return {process: numbers for process, *numbers in cells}


async def test_what_arrives_stays_equal_to_what_is_sent_while_forwarders_are_killed(
    browser: Browser, address: str
) -> None:
    """If each of two forwarders is killed in turn, no message is lost, and none arrives twice."""
    page = await (await browser.new_context(viewport={"width": 760, "height": 720})).new_page()
    page.on("pageerror", lambda error: pytest.fail(f"the page: {error}"))
    await page.goto(address)
    await expect(page.locator("#counts tr")).to_have_count(2)
    lamps, kill = page.locator("#lamps li"), page.get_by_role("button", name="Kill a forwarder")
    for number in range(KILLS):
        await kill.click()
        await expect(lamps.nth(number % 2)).to_have_text(f"forwarder {number % 2 + 1}: killed")
        await expect(kill).to_be_disabled()
        before = await page.locator("#sent").inner_text()
        await expect(page.locator("#sent")).not_to_have_text(before)
        if number == KILLS - 1 and (folder := os.environ.get("SCREENSHOTS")):
            await page.screenshot(path=Path(folder) / "counting.png")
        await expect(kill).to_be_enabled()
    await page.get_by_role("button", name="Pause").click()
    await expect(page.locator("#state")).to_have_text("Paused")
    await expect(page.locator("#counts tr[data-equal=true]")).to_have_count(2)
    sent = await page.locator("#sent").inner_text()
    assert await counts(page) == {process: [sent, "0", "0"] for process in ("web1", "web2")}
    assert int(sent.replace(",", "")) > 500


async def test_without_forwarders_to_kill_there_is_no_button(browser: Browser) -> None:
    """With the embedded layer the page has no button to kill forwarders, and counts all the same."""
    command = [sys.executable, str(DEMO), "embedded", "--messages", "2", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        lines = iter(demo.stdout.readline, "")
        site = next(found for line in lines if (found := re.search(r"http://[^ ]*/", line))).group()
        assert any("Ctrl-C ends it" in line for line in lines)
        page = await browser.new_page()
        await page.goto(f"{site}counting/")
        await expect(page.locator("#counts tr")).to_have_count(1)
        await expect(page.get_by_role("button", name="Kill a forwarder")).to_be_hidden()
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator("#state")).to_have_text("Paused")
        await expect(page.locator("#counts tr[data-equal=true]")).to_have_count(1)
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=30)
