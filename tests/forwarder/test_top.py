"""What `top` draws of status pages."""

from typing import Any

from channels_zmq_forwarder.commands.top import Page, drawn


def page(at: float, instance: str = "a", **numbers: Any) -> Page:
    """Return a page that was read at a time."""
    data = {"instance": instance, "state": "serving", "uptime": 3661.0, "clients": 2, "frames_in": 0, **numbers}
    return Page("127.0.0.1:9600", data, at=at)


def test_rates_are_of_the_time_between_two_pages() -> None:
    """Frames and bytes a second; they are unknown before the second page."""
    first, second = page(10.0), page(12.0, frames_in=300, frames_out=50, bytes_in=3_000_000, bytes_out=1_000_000)
    assert drawn([first], [])[1].split()[4:7] == ["-", "-", "-"]
    assert drawn([second], [first])[1].split()[4:7] == ["150", "25", "2.00"]


def test_a_forwarder_that_was_replaced_begins_anew() -> None:
    """Its counters are not those of the one before."""
    assert drawn([page(12.0, "b", frames_in=3)], [page(10.0, "a", frames_in=900)])[1].split()[4] == "-"


def test_normal_channels_are_added_up_over_all_forwarders() -> None:
    """And those with the most messages stand first, without what would control the terminal."""

    def queue(name: str, waiting: int) -> dict[str, Any]:
        return {"channel": name, "waiting": waiting, "unsettled": 1, "readers": 2}

    pages = [page(1, "a", queues=[queue("jobs", 3), queue("\x1b[2J", 9)]), page(1, "b", queues=[queue("jobs", 8)])]
    lines = drawn(pages, [])
    assert [line.split() for line in lines[-2:]] == [["jobs", "11", "2", "4"], ["\\x1b[2J", "9", "1", "2"]]


def test_a_page_that_cannot_be_read_says_why_and_what_to_do() -> None:
    """Beside those that can."""
    gone = Page("127.0.0.1:1", {}, "127.0.0.1:1: Connection refused")
    assert drawn([gone, page(1.0)], [])[-1] == "not reachable: 127.0.0.1:1: Connection refused"
    assert "--status-address" in drawn([gone], [])[-1]
