"""`python -m benchmarks.sequences`: the cost of sequence numbers, in time and memory, on both sides.

Prints for growing numbers of topics (of one sender) and of runs (senders of one topic): nanoseconds for each message,
and bytes of memory for each entry. Beyond the size of two generations a sender forgets topics before it uses them
again, and their receivers cannot notice losses; the last column is the share of the messages that began a new run.
"""

import time
import tracemalloc
from collections.abc import Callable

from channels_zmq.client.sequences import RECEIVED_RUNS, SENT_TOPICS, Numbers, Runs
from channels_zmq_forwarder import wire

ROUNDS = 4


def main() -> None:
    """Measure and print both tables."""
    print(f"{'topics':>9} {'ns a message':>13} {'bytes a topic':>14} {'runs begun anew':>16}")
    for count in (1_000, 8_192, SENT_TOPICS, 2 * SENT_TOPICS + 1, 4 * SENT_TOPICS):
        print("{:>9,} {:>13,.0f} {:>14,.0f} {:>16.0%}".format(count, *_sender(count)))
    print(f"\n{'senders':>9} {'ns a message':>13} {'bytes a run':>14}")
    for count in (1, 100, RECEIVED_RUNS, 4 * RECEIVED_RUNS):
        print("{:>9,} {:>13,.0f} {:>14,.0f}".format(count, *_receiver(count)))


def _sender(count: int) -> tuple[float, float, float]:
    numbers, first = Numbers(), 0
    size = _allocated(lambda: _use(numbers, count))
    topics = [wire.group_topic(f"room-{number:07}") for number in range(count)]
    begun = time.perf_counter()
    for _ in range(ROUNDS):
        for topic in topics:
            first += numbers.next(topic)[1]
    took = time.perf_counter() - begun
    return took / (ROUNDS * count) * 1e9, size / min(count, 2 * SENT_TOPICS), first / (ROUNDS * count)


def _use(numbers: Numbers, count: int) -> None:
    for number in range(count):
        numbers.next(wire.group_topic(f"room-{number:07}"))


def _receiver(count: int) -> tuple[float, float]:
    senders = [b"s%07d" % number for number in range(count)]
    runs = Runs()
    size = _allocated(lambda: [runs.see(bytes(bytearray(sender)), 10**18 + 1, 0) for sender in senders])
    rounds = max(ROUNDS, 20_000 // count)
    begun = time.perf_counter()
    for number in range(2, rounds + 2):
        for sender in senders:
            runs.see(sender, 10**18 + number, 0)
    return (time.perf_counter() - begun) / (rounds * count) * 1e9, size / min(count, 2 * RECEIVED_RUNS)


def _allocated(action: Callable[[], object]) -> int:
    """Return the bytes that an action leaves allocated."""
    tracemalloc.start()
    action()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size


if __name__ == "__main__":
    main()
