"""Write the generated files: test vectors of the wire format, parts of the chart, tables in pages that people wrote.

Run by `make generate`; running it again changes nothing. A table stands in its page between two markers,

    <!-- generated: NAME -->
    <!-- end of NAME -->

and comes from the function that `PAGES` names for it. To generate another one: write the markers into the page and a
function that returns the lines between them, and enter both in `PAGES`.
"""

import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import chart
from prometheus_client.core import Metric
from pydantic import BaseModel, ByteSize
from pydantic_core import PydanticUndefined

from benchmarks import pages
from channels_zmq.client.counters import LinkStats, Stats
from channels_zmq.config import DedicatedConfig, EmbeddedConfig
from channels_zmq.environment import ENV_PREFIX
from channels_zmq.metrics import families
from channels_zmq_forwarder import wire
from channels_zmq_forwarder.admin import Admin
from channels_zmq_forwarder.exchange import Exchange
from channels_zmq_forwarder.pump import Traffic
from channels_zmq_forwarder.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT / "docs" / "wire-vectors.json"
PERFORMANCE = ROOT / "benchmarks" / "published"
"""Where the files of two runs of the benchmarks are, one for each event loop."""
IMAGES = ROOT / "docs" / "images"
Fields = dict[str, Any]
AnyLayout = wire.Layout[Any]

INBOX = b"0123456789abcdef"
HEXADECIMAL = ("instance", "messages", "payload", "secret", "sender", "topics")
"""Fields whose bytes the vectors show in hexadecimal; all other bytes are text."""
LAYOUTS: dict[str, AnyLayout] = {
    name.lower(): layout for name, layout in vars(wire).items() if isinstance(layout, wire.Layout)
}
HASHED = ("room", "Zürich", "n" * 99)
"""Groups whose topics' hashes the vectors show."""


def main() -> None:
    """Write every generated file that is not up to date."""
    _write(VECTORS, json.dumps(vectors(), indent=2, ensure_ascii=False) + "\n")
    _write(chart.CHART / "templates" / "crd.yaml", chart.definition())
    _write(chart.CHART / "values.schema.json", chart.schema())
    _write(IMAGES / "performance.svg", pages.plot(measured()))
    _write(IMAGES / "latency.svg", pages.latency_plot(measured()))
    for page, tables in PAGES.items():
        text = page.read_text(encoding="utf-8")
        for name, table in tables.items():
            text = _filled(text, name, "\n".join(table()), page)
        _write(page, text)


def _filled(text: str, name: str, table: str, page: Path) -> str:
    begin, end = f"<!-- generated: {name} -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise SystemExit(f"{page} lacks the markers of {name!r}, or has them twice")
    return pattern.sub(lambda _: f"{begin}\n\n{table}\n\n{end}", text)


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


# Test vectors


def vectors() -> dict[str, Any]:
    """Return the content of `wire-vectors.json`."""
    return {
        "about": "Test vectors of the wire format, described in wire-protocol.md. Written by docs/generate.py.",
        "version": wire.VERSION,
        "encoding": f"frames and the fields {', '.join(HEXADECIMAL)} in hexadecimal; other bytes as text",
        "frames": [_vector(name, layout, *case) for name, layout in LAYOUTS.items() for case in _cases(layout)],
        "messages": [_message(*case) for case in _message_cases()],
        "batches": [_batch(*case) for case in _batches()],
        "forwarders": [_list(*case) for case in _lists()],
        "hashes": [
            {"topic": wire.group_topic(one).hex(), "hash": wire.topic_hash(wire.group_topic(one))} for one in HASHED
        ],
        "malformed": list(_malformed()),
    }


def _tails(layout: AnyLayout) -> dict[str, bytes]:
    """Return what may end a frame of a kind that has a list of its own there."""
    message = wire.ordered(wire.group_topic("room"), b"\x11" * 8, 7, 0, 60_000, b"\x80")
    again = wire.again(message, 59_000, 1000, elsewhere=False, acknowledged=False)
    if layout is wire.RESUME:
        return {"a group": wire.encode_hashes([wire.group_topic("room")]), "none": b""}
    if layout is wire.REPLAYED:
        return {"two messages": wire.encode_messages([again, again]), "none": b""}
    return {}


def _cases(layout: AnyLayout) -> Iterator[tuple[str, list[Any]]]:
    sizes = _sizes(layout)
    small = [bytes(range(1, size + 1)) if raw else index + 1 for index, (size, raw) in enumerate(sizes)]
    largest = [b"\xff" * size if raw else 2 ** (8 * size) - 1 for size, raw in sizes]
    zero = [bytes(size) if raw else 0 for size, raw in sizes]
    names = [b"fedcba9876543210", b"room", b"jobs"][-layout.names :] if layout.names else []
    payload = [b"\x81\xa4text\xa2hi"] if layout.parts > layout.names else []
    if _ends_with_list(layout):
        payload = [b""]
    tails = _tails(layout)
    if tails:
        payload = [b""]
    yield "small numbers", [*small, *names, *payload]
    yield "zeros", [*zero, *names, *payload]
    yield "largest numbers", [*largest, *names, *payload]
    if _ends_with_list(layout):
        known = wire.KnownForwarder(b"tcp://10.0.0.1:5555", b"tcp://10.0.0.1:5556", True)
        other = wire.KnownForwarder(b"tcp://10.0.0.2:5555", b"tcp://10.0.0.2:5556", False)
        yield "a list of forwarders", [*small, wire.encode_forwarders([known, other])]
        return
    if tails:
        for title, tail in tails.items():
            yield title, [*small, tail]
        return
    if names:
        foreign = [*names[:-1], "Zürich.\u0967\u0968\U0001d7d8".encode()]
        longest = [*names[:-1], ("\U0001d7d8" * 99).encode()]
        yield "a name that is not ASCII", [*small, *foreign, *payload]
        yield "the longest name", [*small, *longest, *payload]
    if payload:
        yield "empty payload", [*small, *names, b""]
        yield "a payload with NULs", [*small, *names, b"\x00\x01\x00"]


def _ends_with_list(layout: AnyLayout) -> bool:
    return layout in (wire.HELLO, wire.WELCOME)


def _vector(name: str, layout: AnyLayout, title: str, values: list[Any]) -> Fields:
    frame = layout.make(INBOX, *values)
    fields = {field: _shown(field, value) for field, value in zip(frame._fields, frame, strict=True)}
    return {"name": f"{name}: {title}", "kind": name, "fields": fields, "hex": layout.encode(frame).hex()}


def _shown(field: str, value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    return value.hex() if field in HEXADECIMAL else value.decode()


def _message_cases() -> Iterator[tuple[str, Fields]]:
    typical: Fields = {"sender": b"\x11" * 8, "number": 123_456_789, "flags": 0, "ttl": 60_000, "payload": b"\x80"}
    first: Fields = typical | {"flags": wire.FLAG_FIRST}
    sent_again = wire.FLAG_AGAIN | wire.FLAG_ELSEWHERE | wire.FLAG_ACKNOWLEDGED
    largest: Fields = typical | {"sender": b"\xff" * 8, "number": 2**64 - 1, "flags": 255 - sent_again}
    largest["ttl"] = 2**32 - 1
    for title, fields in (
        ("typical", typical),
        ("the first of a run", first),
        ("largest numbers", largest),
        ("sent again", typical | {"flags": wire.FLAG_AGAIN, "age": 1234}),
        ("sent again by another exchange", first | {"flags": wire.FLAG_FIRST | sent_again, "age": 2**32 - 1}),
        ("empty payload", typical | {"payload": b""}),
        ("a payload with NULs", typical | {"payload": b"\x00\x00"}),
    ):
        yield title, {"group": "room"} | fields
        yield title, {"inbox": INBOX, "channel": "specific.0123456789abcdef!a1b2"} | fields
    yield "a name that is not ASCII", {"group": "Zürich"} | typical
    yield "a name that is not ASCII", {"inbox": INBOX, "channel": "Zürich.0123456789abcdef!a1b2"} | typical


def _message(title: str, fields: Fields) -> Fields:
    if "group" in fields:
        kind, body = "group", fields["payload"]
        prefix: bytes = wire.group_topic(fields["group"])
    else:
        kind, prefix = "direct", wire.direct_prefix(fields["inbox"])
        body = wire.direct_body(fields["channel"], fields["payload"])
    flags = fields["flags"] & ~(wire.FLAG_AGAIN | wire.FLAG_ELSEWHERE | wire.FLAG_ACKNOWLEDGED)
    frame = wire.ordered(prefix, fields["sender"], fields["number"], flags, fields["ttl"], body)
    if "age" in fields:
        elsewhere, acknowledged = (bool(fields["flags"] & flag) for flag in (4, 8))
        frame = wire.again(frame, fields["ttl"], fields["age"], elsewhere=elsewhere, acknowledged=acknowledged)
    shown = {name: _shown(name, value) for name, value in fields.items()}
    return {"name": f"{kind}: {title}", "kind": kind, "fields": shown, "hex": frame.hex()}


def _batches() -> Iterator[tuple[str, Fields]]:
    typical: Fields = {"group": "room", "sender": b"\x11" * 8, "number": 7, "flags": wire.FLAG_BATCH, "ttl": 60_000}
    typical["bodies"] = [b"one", b"", b"\x00"]
    direct = typical | {"inbox": INBOX, "bodies": [wire.direct_body(name, b"\x80") for name in ("a!b", "c!d")]}
    del direct["group"]
    yield "three messages of a group", typical
    yield "the first one begins a run", typical | {"flags": wire.FLAG_BATCH | wire.FLAG_FIRST}
    yield "sent again", typical | {"flags": wire.FLAG_BATCH | wire.FLAG_AGAIN, "age": 1234}
    yield "one message", typical | {"bodies": [b"one"]}
    yield "the most messages", typical | {"bodies": [b"x"] * wire.MAX_BATCH}
    yield "direct messages to two channels", direct


def _batch(title: str, fields: Fields) -> Fields:
    prefix = wire.group_topic(fields["group"]) if "group" in fields else wire.direct_prefix(fields["inbox"])
    flags, bodies = fields["flags"] & ~wire.FLAG_AGAIN, fields["bodies"]
    frame = wire.ordered(prefix, fields["sender"], fields["number"], flags, fields["ttl"], wire.batch(bodies))
    if "age" in fields:
        frame = wire.again(frame, fields["ttl"], fields["age"], elsewhere=False, acknowledged=False)
    shown = {name: _shown(name, value) for name, value in fields.items()} | {"bodies": [body.hex() for body in bodies]}
    messages = [message.hex() for message in wire.split(frame)]
    return {"name": f"batch: {title}", "fields": shown, "hex": frame.hex(), "messages": messages}


def _lists() -> Iterator[tuple[str, list[wire.KnownForwarder]]]:
    yield "none", []
    yield "one", [wire.KnownForwarder(b"tcp://10.0.0.1:5555", b"tcp://10.0.0.1:5556", True, b"0123456789abcdef")]
    tcp = wire.KnownForwarder(b"tcp://[fd00::1]:5555", b"tcp://[fd00::1]:5556", False)
    yield "two", [tcp, wire.KnownForwarder(b"ipc:///run/a pull", b"ipc:///run/a pub", True)]
    longest = b"ipc:///".ljust(wire.MAX_ADDRESS, b"x")
    yield "the longest addresses", [wire.KnownForwarder(longest, longest, True, b"f" * wire.INSTANCE_DIGITS)]
    yield (
        "the longest list",
        [wire.KnownForwarder(b"a%d" % number, b"b", True) for number in range(wire.MAX_FORWARDERS)],
    )


def _list(title: str, known: list[wire.KnownForwarder]) -> Fields:
    shown = [
        {
            field: value.decode() if isinstance(value, bytes) else value
            for field, value in zip(each._fields, each, strict=True)
        }
        for each in known
    ]
    return {"name": f"forwarders: {title}", "forwarders": shown, "hex": wire.encode_forwarders(known).hex()}


def _malformed() -> Iterator[Fields]:
    """Yield bytes that a decoder must refuse, with the kind that they claim to be."""
    for name, layout in LAYOUTS.items():
        _, values = next(_cases(layout))
        good = layout.encode(layout.make(INBOX, *values))
        head = len(good) - len(b"\0".join(values[len(values) - layout.parts :] if layout.parts else []))
        bad = {
            "cut within the numbers": good[: head - 1],
            "an inbox in capitals": good.replace(INBOX, INBOX.upper(), 1),
            "another kind": b"?" + good[1:],
        }
        if layout.names:
            bad["no name"] = good[:head]
            bad["an empty name"] = good[:head] + b"\0" * (layout.parts - 1)
            texts = [b"n" * (wire.MAX_NAME + 1)] * layout.names + [b""] * (layout.parts - layout.names)
            bad["a name that is too long"] = good[:head] + b"\0".join(texts)
        elif not layout.parts:
            bad["a byte too many"] = good + b"\0"
        if layout in wire.INBOX_LAYOUTS:
            bad["no NUL behind the inbox"] = good.replace(INBOX + b"\0", INBOX + b"0", 1)
        for title, data in bad.items():
            yield {"name": f"{name}: {title}", "kind": name, "hex": data.hex()}
    group = wire.ordered(wire.group_topic("room"), bytes(8), 1, 0, 0, b"")
    direct = wire.ordered(wire.direct_prefix(INBOX), bytes(8), 1, 0, 0, wire.direct_body("a!b", b""))
    for title, kind, data in (
        ("cut within the head", "group", group[:-1]),
        ("no NUL", "group", b"Groom"),
        ("no name", "group", b"G" + group[5:]),
        ("cut within the head", "direct", direct[:30]),
        ("no NUL behind the channel", "direct", direct[:-1]),
        ("no channel", "direct", direct[:-4] + b"\0"),
        ("a channel that is not UTF-8", "direct", direct[:-4] + b"\xff!b\0"),
    ):
        yield {"name": f"{kind}: {title}", "kind": kind, "hex": data.hex()}
    batch = wire.ordered(wire.group_topic("room"), bytes(8), 1, wire.FLAG_BATCH, 0, b"")
    last = wire.ordered(wire.group_topic("room"), bytes(8), wire.MAX_NUMBER, wire.FLAG_BATCH, 0, b"")
    for title, data in (
        ("no count", batch),
        ("no messages", batch + b"\0"),
        ("too many messages", batch + bytes([wire.MAX_BATCH + 1]) + bytes(4 * (wire.MAX_BATCH + 1))),
        ("cut within the lengths", batch + b"\2\0\0\0\1\0\0"),
        ("a body that is too short", batch + b"\1\0\0\0\2x"),
        ("a byte too many", batch + b"\1\0\0\0\1xy"),
        ("a number above the highest one", last + wire.batch([b"a", b"b"])),
    ):
        yield {"name": f"batch: {title}", "kind": "batch", "hex": data.hex()}
    too_long = b"x" * (wire.MAX_ADDRESS + 1)
    for title, data in (
        ("one address", b"1pull"),
        ("two addresses without an instance", b"1pull\0pub"),
        ("neither 0 nor 1", b"2pull\0pub\0"),
        ("no digit", b"pull\0pub\0"),
        ("an empty first address", b"1\0pub\0"),
        ("an empty second address", b"1pull\0\0"),
        ("a first address that is too long", b"1" + too_long + b"\0pub\0"),
        ("a second address that is too long", b"1pull\0" + too_long + b"\0"),
        ("an instance that is too short", b"1pull\0pub\0" + b"0123456789abcde"),
        ("an instance with uppercase digits", b"1pull\0pub\0" + b"0123456789ABCDEF"),
        ("a NUL behind the last instance", b"1pull\0pub\0\0"),
        ("too many", b"\0".join([b"1pull\0pub\0"] * (wire.MAX_FORWARDERS + 1))),
    ):
        yield {"name": f"forwarders: {title}", "kind": "forwarders", "hex": data.hex()}


# Tables


def frames(layouts: tuple[AnyLayout, ...]) -> Callable[[], Iterator[str]]:
    """Return the table of some kinds of frames."""

    def table() -> Iterator[str]:
        yield "| kind | frame | fields behind the inbox, with their bytes | meaning |"
        yield "|---|---|---|---|"
        names = {layout.kind: name for name, layout in LAYOUTS.items() if layout in layouts}
        for layout in layouts:
            what = " ".join((layout.make.__doc__ or "").split())
            yield f"| `{chr(layout.kind)}` | {names[layout.kind]} | {_fields(layout)} | {what} |"

    return table


def _fields(layout: AnyLayout) -> str:
    sizes = _sizes(layout)
    columns = list(layout.make._fields[1:])  # type: ignore[attr-defined] # every `make` is a NamedTuple
    numbers = [f"{name} {size}" for name, (size, _) in zip(columns, sizes, strict=False)]
    return ", ".join([*numbers, *columns[len(sizes) :]])


def _sizes(layout: AnyLayout) -> list[tuple[int, bool]]:
    """Return the size in bytes of each field of fixed size, and whether it is bytes rather than a number."""
    codes = re.findall(r"\d*[BIQs]", layout.numbers.format)
    return [(struct.calcsize(f">{code}"), code.endswith("s")) for code in codes]


def ports() -> Iterator[str]:
    """Return which kinds of frames an exchange takes by which port."""
    exchange = Exchange(bytes(8))
    named = {layout.kind: name for name, layout in LAYOUTS.items() if layout in wire.CLIENT_LAYOUTS}
    named |= {0: "unsubscribe (ZeroMQ's own)", 1: "subscribe (ZeroMQ's own)"}
    named |= {wire.GROUP: "group message", wire.INBOX: "frame for an inbox"}
    ways = exchange._upstream, exchange._inbound  # the two tables that the exchange itself goes by
    yield "| first byte | frame | subscribers' port (upstream of XSUB) | producers' port (PUSH) |"
    yield "|---|---|---|---|"
    for kind in sorted({*ways[0], *ways[1]}):
        taken = ["yes" if kind in way else "-" for way in ways]
        if kind == wire.INBOX:
            taken = ["`a`, `k`", "`d`, `a`, `k`"]
        yield f"| {f'`{chr(kind)}`' if kind > 1 else f'{kind:#04x}'} | {named[kind]} | {' | '.join(taken)} |"


def flags() -> Iterator[str]:
    """Return the table of the forwarder's settings."""
    yield from settings_table(Settings, PREFIX, "flag", lambda name: f"--{name.replace('_', '-')}")


def keys(model: type[BaseModel]) -> Callable[[], Iterator[str]]:
    """Return the table of a layer's CONFIG."""
    return lambda: settings_table(model, ENV_PREFIX, "key", lambda name: name)


def settings_table(model: type[BaseModel], prefix: str, title: str, shown: Callable[[str], str]) -> Iterator[str]:
    """Return a table of settings: how one is called here, environment variable, default and description."""
    yield f"| {title} | variable | default | |"
    yield "|---|---|---|---|"
    for name, field in model.model_fields.items():
        value = default(field.get_default(call_default_factory=True))
        yield f"| `{shown(name)}` | `{prefix}{name.upper()}` | {value} | {field.description} |"


def default(value: Any) -> str:
    """Return how a table shows a default."""
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, ByteSize):
        return f"`{value.human_readable().replace('.0', '')}`" if value else "`0`"
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    return f"`{value}`" if value != "" else "empty"


def metrics() -> Iterator[str]:
    """Return the table of the forwarder's metrics."""
    yield from metrics_table(Admin(Exchange(bytes(8)), Traffic()).registry.collect())


def library_metrics() -> Iterator[str]:
    """Return the table of the metrics of a Django process."""
    link = LinkStats(forwarder="", state="up", session=0, carries=True, unacknowledged=0, held=0, sent_again=0)
    stats = Stats(
        connected=True,
        sent=0,
        received=0,
        dropped={},
        repeated=0,
        sent_again=0,
        reconnects=0,
        waiting=0,
        held=0,
        channels=0,
        groups=0,
        members=0,
        links=[link],
    )
    yield from metrics_table(families({"default": stats}))


def metrics_table(found: Iterable[Metric]) -> Iterator[str]:
    """Return the lines of a table of metrics."""
    yield "| metric | type | |"
    yield "|---|---|---|"
    for family in found:
        if family.name.startswith("channels_zmq"):
            labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
            name = f"{family.name}_total" if family.type == "counter" else family.name
            name += f"{{{','.join(labels)}}}" if labels else ""
            yield f"| `{name}` | {family.type} | {family.documentation} |"


@cache
def measured(loop: str = "asyncio") -> pages.Run:
    """Return the run of the benchmarks on an event loop that the pages show."""
    run: pages.Run = json.loads((PERFORMANCE / f"{loop}.json").read_text(encoding="utf-8"))
    return run


def figures_of(measure: str) -> Callable[[], Iterator[str]]:
    """Return the table of all figures of one measure."""
    return lambda: pages.figures(measured(), measure)


PAGES: dict[Path, dict[str, Callable[[], Iterator[str]]]] = {
    ROOT / "docs" / "wire-protocol.md": {
        "frames of clients": frames(wire.CLIENT_LAYOUTS),
        "frames for an inbox": frames(wire.INBOX_LAYOUTS),
        "ports": ports,
    },
    ROOT / "docs" / "configuration.md": {"embedded": keys(EmbeddedConfig), "dedicated": keys(DedicatedConfig)},
    ROOT / "docs" / "monitoring.md": {"metrics": library_metrics},
    ROOT / "docs" / "performance.md": {
        "about": lambda: pages.about(measured()),
        "goals": lambda: pages.goals(measured()),
        "about uvloop": lambda: pages.about(measured("uvloop")),
        "goals on uvloop": lambda: pages.goals(measured("uvloop")),
        **{name: figures_of(name) for name in ("websockets", "memory", "joins", "growth", "cuts", "start")},
    },
    ROOT / "README.md": {"measured": lambda: pages.headlines(measured())},
    ROOT / "forwarder" / "README.md": {"settings": flags, "metrics": metrics},
    chart.CHART / "README.md": {"values": chart.table},
}

if __name__ == "__main__":
    main()
