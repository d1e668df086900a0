"""`manage.py channels_zmq stats` and `top`: the state of the forwarders.

A forwarder answers every client by the wire protocol (`probe`). Its status page shows more, on a loopback address
unless its `--status-address` is another one.
"""

from collections.abc import Iterator, Sequence

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq.tools import ToolError
from channels_zmq.tools.layers import Layer
from channels_zmq.tools.probe import Finding, probe
from channels_zmq_forwarder.commands.text import counted, duration, printable
from channels_zmq_forwarder.commands.top import ADMIN_PORT, LOCAL, REACH, Page, drops, pages, queues
from channels_zmq_forwarder.sockets import host_of, is_local


def addresses(layer: Layer, given: Sequence[str]) -> list[list[str]]:
    """Return where the status page of each forwarder may be: one list for each, the likeliest first.

    Raises:
        ToolError: If the layer has no forwarder.
    """
    if given:
        return [[one.removeprefix("http://").rstrip("/")] for one in given]
    if not isinstance(layer, DedicatedZmqChannelLayer):
        raise ToolError(
            "an embedded layer has no forwarder and no status page; use `layer.stats()` or the metrics of the process "
            "that uses the layer"
        )
    return [_guessed(pull) for pull, _ in layer.config.forwarders]


def _guessed(pull: str) -> list[str]:
    if is_local(pull):
        return [*LOCAL]
    return [f"{host_of(pull)}:{ADMIN_PORT}"]


def stats(layer: Layer, given: Sequence[str], timeout: float) -> Iterator[str]:
    """Yield lines on each forwarder of a layer.

    Raises:
        ToolError: If the layer has no forwarder.
    """
    places = addresses(layer, given)
    findings = probe(layer, timeout)
    found = pages(places)
    by_instance = {page.data.get("instance"): page for page in found if page.data}
    for finding in findings:
        yield finding.where
        if finding.problem:
            yield f"  {finding.problem}. {finding.advice}"
        else:
            speed = duration(finding.round_trip)
            yield f"  {finding.state}, {counted(finding.clients, 'client')}, round trip {speed}"
        page = by_instance.pop(finding.instance, None)
        yield from (f"  {line}" for line in (_details(page) if page is not None else _missing(found, finding)))


def _missing(found: Sequence[Page], finding: Finding) -> list[str]:
    """Return why no details of a forwarder can be shown."""
    if finding.problem:
        return []
    tried = "; ".join(page.problem or f"{page.address} is the page of another forwarder" for page in found)
    return [f"no status page ({printable(tried)}):", f"  {REACH}"]


def _details(page: Page) -> list[str]:
    data = page.data
    frames = f"{page.number('frames_in'):,.0f} frames in, {page.number('frames_out'):,.0f} out"
    lines = [f"up {duration(page.number('uptime'))}, version {printable(str(data.get('version')))}, {frames}"]
    lines += [f"{counted(int(page.number('groups')), 'group')}, {counted(int(page.number('queue_count')), 'queue')}"]
    if waiting := int(page.number("waiting")):
        lines.append(f"waiting: {counted(waiting, 'message')}, the oldest for {duration(page.number('oldest_wait'))}")
    lines += [f"  {line}" for line in queues([page])]
    if causes := drops(page):
        lines.append("drops: " + ", ".join(f"{cause} {count:,}" for cause, count in causes.items()))
    return lines
