"""Jobs on a normal channel, shared by four worker processes. Figures: jobs/s, and the p50 of one `send` in us.

First sixteen coroutines of one process send jobs as fast as they may while the workers read: `jobs_per_s` is the
number of jobs over the time from the first send to the last receive. Then one coroutine sends job after job:
`send_p50_us` (ours returns when the forwarder has confirmed the job, Redis core when Redis has stored it).

Each job must reach exactly one worker, and each worker must see the jobs of a coroutine in their order. Redis core is
known to deliver a part of the jobs twice as soon as two processes read; that is counted and noted instead of ending
the run, and its jobs/s counts each job once. Redis pub/sub is not measured: it delivers every job to every worker.
"""

import asyncio
import time
from collections import Counter

from benchmarks.crew import Line, WrongResultError
from benchmarks.goals import Goal
from benchmarks.messages import KIND, PROBE, STOP, TEXT, message
from benchmarks.peers import Layer, Message, Peer, close

from .base import Bench, Figures, Measure, fresh, percentile

WORKERS = 4
LANES = 16
CONFIRMED = "confirmed"  # the lane of the second part
PROBE_SECONDS = 0.05
REPEATS_ARE_KNOWN = ("redis-core",)

Job = tuple[int | str, int]


def run(bench: Bench, name: str) -> Figures:
    """Measure one peer once."""
    each = bench.size(1_000 if name not in REPEATS_ARE_KNOWN else 100, 5)
    confirmed = bench.size(500, 10)
    with bench.crew() as crew:
        peer, channel = bench.peer(name), fresh("jobs")
        workers = [crew.start(work, peer, channel) for _ in range(WORKERS)]
        sender_end, harness_end = crew.link()
        sender = crew.start(send, sender_end, peer, channel, each, confirmed)
        for worker in workers:
            crew.take(worker)
        harness_end.put("all workers read")
        start, times = crew.take(sender)
        reports: list[tuple[list[Job], int]] = [crew.take(worker) for worker in workers]
        for worker in workers:
            worker.line.put("end")
        harness_end.put("end")
    expected: set[Job] = {(lane, n) for lane in range(LANES) for n in range(each)}
    expected |= {(CONFIRMED, n) for n in range(confirmed)}
    check_jobs(bench, name, [seen for seen, _ in reports], expected)
    end = max(end for _, end in reports)
    return {"jobs_per_s": LANES * each / (end - start) * 1e9, "send_p50_us": percentile(times, 50)}


async def send(line: Line, link: Line, peer: Peer, channel: str, each: int, confirmed: int) -> None:
    """Send probes until every worker has read one, then the jobs, then one stop for each worker."""
    layer = peer.open()
    for _ in range(WORKERS):
        await layer.send(channel, message(PROBE))
    while not await link.arrives(PROBE_SECONDS):
        for _ in range(WORKERS):
            await layer.send(channel, message(PROBE))
    start = time.monotonic_ns()
    async with asyncio.TaskGroup() as lanes:
        for lane in range(LANES):
            lanes.create_task(_send_lane(layer, channel, lane, each))
    times = []
    for number in range(confirmed):
        job = _job(CONFIRMED, number)
        sent = time.perf_counter_ns()
        await layer.send(channel, job)
        times.append(time.perf_counter_ns() - sent)
    for _ in range(WORKERS):
        await layer.send(channel, message(STOP))
    line.put((start, times))
    await link.aget()
    await close(layer)


async def work(line: Line, peer: Peer, channel: str) -> None:
    """Read until a stop, and report the jobs that were read, and when the last job of the first part arrived."""
    layer = peer.open()
    seen: list[Job] = []
    end = 0
    reached = False
    while (got := await layer.receive(channel))["n"] != STOP:
        if got["n"] == PROBE:
            if not reached:
                line.put("reached")
            reached = True
            continue
        if got != _job(got["lane"], got["n"]):
            raise WrongResultError(f"{peer.name}, worker: wrong content in job {got.get('n')}")
        seen.append((got["lane"], got["n"]))
        if got["lane"] != CONFIRMED:
            end = time.monotonic_ns()
    line.put((seen, end))
    await line.aget()  # the loop continues meanwhile: a layer returns the jobs that it had prefetched
    await close(layer)


def check_jobs(bench: Bench, name: str, seen: list[list[Job]], expected: set[Job]) -> None:
    """Compare the jobs that the workers saw, one list for each, with those that were sent.

    Raises:
        WrongResultError: If a job was lost, changed its number, or arrived twice or out of order.
    """
    times = Counter(job for one in seen for job in one)
    lost, strange = expected - times.keys(), times.keys() - expected
    repeats = times.total() - len(times)
    disorder = sum(_disorder(one) for one in seen)
    if lost or strange or (name not in REPEATS_ARE_KNOWN and (repeats or disorder)):
        raise WrongResultError(
            f"{name}, jobs: {len(lost)} lost, {len(strange)} strange, {repeats} twice, {disorder} out of order"
        )
    if repeats or disorder:
        bench.notes.append(
            f"jobs, {name}: of {len(expected)} jobs {repeats} were handed out twice, {disorder} out of order"
        )


async def _send_lane(layer: Layer, channel: str, lane: int, each: int) -> None:
    for number in range(each):
        await layer.send(channel, _job(lane, number))


def _job(lane: int | str, number: int) -> Message:
    return {"type": KIND, "n": number, "lane": lane, "text": TEXT}


def _disorder(seen: list[Job]) -> int:
    last: dict[int | str, int] = {}
    wrong = 0
    for lane, number in seen:
        wrong += number <= last.get(lane, -1)
        last[lane] = number
    return wrong


JOBS = Measure(
    "jobs",
    "jobs on a normal channel to four workers",
    ("dedicated", "redis-core"),
    run,
    (
        Goal("jobs_per_s", "redis-core", ">=", 3, headline="jobs to four workers"),
        Goal("send_p50_us", "redis-core", "<=", 0.333, headline="a confirmed send of a job, p50"),
    ),
)
