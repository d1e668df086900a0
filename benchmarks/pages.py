"""Tables and plots for the documentation, from the JSON file of a run, without I/O; docs/generate.py calls them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

Run = Mapping[str, Any]
"""The content of a JSON file that `report.write` has written."""

PEERS = {
    "": "",
    "dedicated": "dedicated",
    "dedicated-lean": "dedicated, our consumers",
    "embedded": "embedded",
    "embedded-local": "embedded",
    "encrypted": "dedicated, encrypted",
    "redis-pubsub": "Redis pub/sub",
    "redis-pubsub-lean": "Redis pub/sub, our consumers",
    "redis-core": "Redis core",
    "inmemory": "InMemory",
    "one-forwarder": "one forwarder",
    "two-forwarders": "two forwarders",
    "raw": "raw libzmq by its C proxy",
    "raw-asyncio": "raw libzmq on asyncio",
}
UNITS = (
    ("_per_s", "/s"),
    ("_us", " us"),
    ("_us_per_delivery", " us"),
    ("_us_per_event", " us"),
    ("_ms", " ms"),
    ("_bytes", " B"),
    ("_mib", " MiB"),
    ("_percent", " %"),
)
"""The ends of the names of figures, each with the unit that follows its number."""

WIDTH, LABELS, ROW, TOP = 820, 390, 24, 34
TICKS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)


def number(value: float) -> str:
    """Return three digits or all of a larger whole number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def quantity(figure: str, value: float) -> str:
    """Return a figure with its unit; times above 1,000 us in ms, and above 10 s in s."""
    unit = next((shown for end, shown in UNITS if figure.endswith(end)), "")
    for larger in ((" us", " ms"), (" ms", " s")):
        if unit == larger[0] and value >= 1_000:
            value, unit = value / 1_000, larger[1]
    return number(value) + unit


def headlines(run: Run) -> Iterator[str]:
    """Return the README's table: the goals that have a headline."""
    yield "| measure | ours | peer | ratio | goal |"
    yield "|---|---|---|---|---|"
    for one in _measured(run):
        if one["goal"]["headline"]:
            yield f"| {one['goal']['headline']} | {_ours(one)} | {_peer(one)} | {_ratio(one)} | {_goal(one)} |"


def goals(run: Run) -> Iterator[str]:
    """Return the table of all goals."""
    yield "| measure | figure | ours | peer | ratio (rounds) | goal |"
    yield "|---|---|---|---|---|---|"
    for one in _measured(run):
        spread = f"{number(one['low'])}-{number(one['high'])}"
        cells = run["titles"][one["measure"]], f"`{one['goal']['figure']}`", _ours(one), _peer(one)
        yield f"| {' | '.join(cells)} | {_ratio(one)} ({spread}) | {_goal(one)} |"


def figures(run: Run, measure: str) -> Iterator[str]:
    """Return all medians of one measure, a row for each figure and a column for each peer."""
    peers = run["measures"].get(measure, {})
    names = dict.fromkeys(name for found in peers.values() for name in found)
    yield f"| figure | {' | '.join(PEERS[peer] for peer in peers)} |"
    yield f"|---|{'---|' * len(peers)}"
    for name in names:
        medians = [found[name]["median"] if name in found else None for found in peers.values()]
        yield f"| `{name}` | {' | '.join('-' if one is None else quantity(name, one) for one in medians)} |"


def about(run: Run) -> Iterator[str]:
    """Return the machine, the versions and the settings of the run."""
    machine, packages = run["machine"], run["machine"]["packages"]
    rounds = run["settings"]["rounds"] or "5 or fewer, as each measure says"
    yield f"{run['date'][:10]}, {machine['cores']} cores ({machine['processor']}), Python {machine['python']},"
    yield f"libzmq {machine['libzmq']}, Redis {machine['redis-server']}, event loop {run['settings']['loop']};"
    yield f"channels {packages['channels']}, channels_redis {packages['channels_redis']}, redis {packages['redis']},"
    yield f"pyzmq {packages['pyzmq']}. Rounds: {rounds}."


def plot(run: Run) -> str:
    """Return an SVG: how many times better ours is, for each goal with a headline, with the extremes of the rounds."""
    rows = [one for one in _measured(run) if one["goal"]["headline"] and one["goal"]["peer"]]
    best = [[_advantage(one, one[key]) for key in ("low", "ratio", "high", "factor")] for one in map(_flat, rows)]
    least = min([0.5, *(min(each) for each in best)])
    most = max([2.0, *(max(each) for each in best)])
    ticks = [tick for tick in TICKS if least / 2 < tick < most * 2]
    bottom = TOP + ROW * len(rows)

    def at(value: float) -> float:
        share = math.log(value / ticks[0]) / math.log(ticks[-1] / ticks[0])
        return LABELS + 10 + max(0.0, min(1.0, share)) * (WIDTH - LABELS - 70)

    parts = [
        _text(LABELS + 10, 14, "times better than the peer (log scale); | the goal, thin line: all rounds", "start")
    ]
    for tick in ticks:
        parts.append(f'<path d="M{at(tick):.1f} {TOP - 6}V{bottom}" stroke="{"#888" if tick == 1 else "#ddd"}"/>')
        parts.append(_text(at(tick), bottom + 14, f"{tick:g}", "middle"))
    for row, (one, (low, ratio, high, goal)) in enumerate(zip(rows, best, strict=True)):
        middle = TOP + ROW * row + ROW / 2
        left, right = sorted((at(1), at(ratio)))
        colour = "#2f7d4f" if ratio >= 1 else "#b4552d"
        parts.append(
            _text(LABELS, middle + 4, _plain(f"{one['goal']['headline']} / {PEERS[one['goal']['peer']]}"), "end")
        )
        parts.append(f'<path d="M{left:.1f} {middle:.1f}H{right:.1f}" stroke="{colour}" stroke-width="10"/>')
        parts.append(f'<path d="M{at(low):.1f} {middle:.1f}H{at(high):.1f}" stroke="#222" stroke-width="1.5"/>')
        parts.append(f'<path d="M{at(goal):.1f} {middle - 8:.1f}v16" stroke="#222" stroke-width="2"/>')
        parts.append(_text(max(at(high), at(goal), right) + 6, middle + 4, f"{ratio:.2g}", "start"))
    return _svg(bottom + 22, parts)


def latency_plot(run: Run) -> str:
    """Return an SVG: p99 of a delivery to a WebSocket at shares of the rate that each layer carries."""
    peers = run["measures"].get("websockets", {})
    curves = {peer: _curve(found) for peer, found in peers.items()}
    values = [value for curve in curves.values() for _, value in curve]
    least, most = (10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values))))
    rates = [rate for curve in curves.values() for rate, _ in curve]
    left, right, bottom = 70, WIDTH - 210, 300

    def x(rate: float) -> float:
        return left + rate / max(rates) * (right - left)

    def y(value: float) -> float:
        return TOP + (1 - math.log(value / least) / math.log(most / least)) * (bottom - TOP)

    parts = [
        _text(left, 14, "p99 of a delivery in ms, by messages a second to 1,000 sockets: at 20, 50, 80 % of the rate")
    ]
    for power in range(round(math.log10(least)), round(math.log10(most)) + 1):
        parts.append(f'<path d="M{left} {y(10**power):.1f}H{right}" stroke="#ddd"/>')
        parts.append(_text(left - 6, y(10**power) + 4, f"{10**power / 1_000:g}", "end"))
    marks = range(0, math.floor(max(rates)) + 1, max(1, round(max(rates) / 8)))
    parts += [_text(x(mark), bottom + 16, f"{mark}", "middle") for mark in marks]
    colours = ("#1b6f3a", "#4fae6f", "#a33b1f", "#d98b5f", "#5b5b9d")
    for row, ((peer, curve), colour) in enumerate(zip(curves.items(), colours, strict=False)):
        points = " ".join(f"{x(rate):.1f},{y(value):.1f}" for rate, value in curve)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(rate):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>' for rate, value in curve]
        parts.append(_text(right + 10, TOP + 14 + 18 * row, _plain(PEERS[peer]), "start", colour))
    return _svg(bottom + 26, parts)


def _curve(found: Mapping[str, Any]) -> list[tuple[float, float]]:
    rate = found["messages_per_s"]["median"]
    return [(rate * load / 100, found[f"load_{load}_p99_us"]["median"]) for load in (20, 50, 80)]


def _measured(run: Run) -> list[Mapping[str, Any]]:
    return [one for one in run["goals"] if one["ratio"] is not None]


def _flat(one: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**one, "factor": one["goal"]["factor"]}


def _advantage(one: Mapping[str, Any], ratio: float) -> float:
    """Return how many times better ours is: less is better for a goal that is an upper limit."""
    return 1 / ratio if one["goal"]["relation"] == "<=" else ratio


def _ours(one: Mapping[str, Any]) -> str:
    return f"{PEERS[one['goal']['ours']]} {quantity(one['goal']['figure'], one['ours'])}"


def _peer(one: Mapping[str, Any]) -> str:
    goal = one["goal"]
    return f"{PEERS[goal['peer']]} {quantity(goal['than'] or goal['figure'], one['peer'])}" if goal["peer"] else "-"


def _ratio(one: Mapping[str, Any]) -> str:
    return number(one["ratio"])


def _goal(one: Mapping[str, Any]) -> str:
    relation = {"<=": "at most", ">=": "at least"}[one["goal"]["relation"]]
    return f"{relation} {one['goal']['factor']:g}, {'met' if one['met'] else 'missed'}"


def _plain(text: str) -> str:
    return text.replace("`", "")


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _svg(height: float, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif"'
    background = f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>'
    return "\n".join([f'{head} font-size="11">', background, *parts, "</svg>"]) + "\n"
