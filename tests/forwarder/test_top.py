"""The tables that `top` draws from status pages."""

from typing import Any

from channels_zmq_forwarder.commands.top import Page, drawn


def page(at: float, instance: str = "a", **numbers: Any) -> Page:
    """Return a page that was read at a given time."""
    data = {"instance": instance, "state": "serving", "uptime": 3661.0, "clients": 2, "frames_in": 0, **numbers}
    return Page("127.0.0.1:9600", data, at=at)


def test_rates_are_of_the_time_between_two_pages() -> None:
    """Rates of frames and bytes per second need two pages, and are unknown before the second one."""
    first, second = page(10.0), page(12.0, frames_in=300, frames_out=50, bytes_in=3_000_000, bytes_out=1_000_000)
    assert drawn([first], [])[1].split()[4:7] == ["-", "-", "-"]
    assert drawn([second], [first])[1].split()[4:7] == ["150", "25", "2.00"]


def test_a_forwarder_that_was_replaced_begins_anew() -> None:
    """A replaced forwarder has no rates yet, since its counters are not those of its predecessor."""
    assert drawn([page(12.0, "b", frames_in=3)], [page(10.0, "a", frames_in=900)])[1].split()[4] == "-"


def test_normal_channels_are_added_up_over_all_forwarders() -> None:
    """Channels are summed over all forwarders, longest first, with control characters of the terminal escaped."""

    def queue(name: str, waiting: int) -> dict[str, Any]:
        return {"channel": name, "waiting": waiting, "unsettled": 1, "readers": 2}

    pages = [page(1, "a", queues=[queue("jobs", 3), queue("\x1b[2J", 9)]), page(1, "b", queues=[queue("jobs", 8)])]
    lines = drawn(pages, [])
    assert [line.split() for line in lines[-2:]] == [["jobs", "11", "2", "4"], ["\\x1b[2J", "9", "1", "2"]]


def test_a_page_that_cannot_be_read_says_why_and_what_to_do() -> None:
    """A page that cannot be read is listed below the others with its error and the setting to check."""
    gone = Page("127.0.0.1:1", {}, "127.0.0.1:1: Connection refused")
    assert drawn([gone, page(1.0)], [])[-1] == "not reachable: 127.0.0.1:1: Connection refused"
    assert "--status-address" in drawn([gone], [])[-1]
