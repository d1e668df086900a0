"""Memory for waiting consumers, in bytes for each: of a consumer, of a membership, and of a group.

Four processes make `COUNT` consumers together: channels, each with a task in `receive`. Then all of these join one
group, and then each a group of its own, which makes as many groups as consumers. The memory that the processes
(`client`) and the server add at each step is divided by the number of consumers (`consumers`; nothing is extrapolated).
It is the memory that they share with no other process (USS). So the task of a consumer is part of the figure, for every
layer, and the one membership part of the group's.

At the end all consumers get one message by the group of all, and the run checks that each did.
"""

from benchmarks.crew import Line
from benchmarks.goals import Goal
from benchmarks.messages import check, message
from benchmarks.peers import Peer, close

from .base import Bench, Figures, Measure, fresh, private_bytes
from .idle import AT_A_TIME, Consumers

COUNT = 100_000
PROCESSES = 4
STEPS = ("consumer", "membership", "group")


def run(bench: Bench, name: str) -> Figures:
    """Measure one peer once, on a server of its own."""
    each = bench.size(COUNT, 10_000) // PROCESSES
    names = fresh("idle")
    figures: Figures = {"consumers": each * PROCESSES}
    with bench.alone(name) as own, own.crew() as crew:
        peer, server = own.peer(name), own.server(name)
        workers = [crew.start(wait, peer, f"{names}-{index}", names, each) for index in range(PROCESSES)]

        def memory() -> tuple[int, int]:
            for worker in workers:
                crew.take(worker)
            return sum(private_bytes(worker.pid) for worker in workers), private_bytes(server)

        before = memory()
        for step in STEPS:
            for worker in workers:
                worker.line.put("go")
            after = memory()
            taken = (now - then for now, then in zip(after, before, strict=True))
            of_client, of_server = (max(0, round(one / (each * PROCESSES))) for one in taken)  # less is noise
            before = after
            figures[f"{step}_client_bytes"] = of_client
            figures[f"{step}_server_bytes"] = of_server
            figures[f"{step}_bytes"] = of_client + of_server
        sender = crew.start(send_to_all, peer, names)
        for worker in (sender, *workers):
            crew.take(worker)
    return figures


async def wait(line: Line, peer: Peer, own: str, everyone: str, count: int) -> None:
    """Make consumers, their memberships and groups, step by step, then let each consumer read one message."""
    layer = peer.open()
    warm = Consumers(layer)
    await warm.add(AT_A_TIME)
    await warm.join((f"{own}-warm-{index % 2}", channel) for index, channel in enumerate(warm.channels))
    consumers = Consumers(layer)
    for step in (
        None,
        lambda: consumers.add(count),
        lambda: consumers.join((everyone, channel) for channel in consumers.channels),
        lambda: consumers.join((f"{own}-{index}", channel) for index, channel in enumerate(consumers.channels)),
    ):
        if step is not None:
            await line.aget()
            await step()
        line.put("done")
    for read in consumers.reads:
        check(await read, 0, f"{peer.name}, one of {count} consumers")
    line.put("read")
    await warm.end()
    await close(layer)


async def send_to_all(line: Line, peer: Peer, group: str) -> None:
    """Send the one message to the group of all consumers."""
    layer = peer.open()
    await layer.group_send(group, message(0))
    line.put("sent")
    await close(layer)


HEADLINES = {"consumer": "memory for each idle consumer", "membership": "memory for each membership"}
MEMORY = Measure(
    "memory",
    "memory for consumers that wait, in bytes for each",
    ("dedicated", "redis-pubsub", "redis-core"),
    run,
    tuple(Goal(f"{step}_bytes", "redis-core", "<=", 0.5, headline=HEADLINES.get(step, "")) for step in STEPS),
    at_most=1,
)
