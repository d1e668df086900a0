"""The benchmarks run, check the messages that they receive, and write every figure; speed is not tested here."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree as ET

import ormsgpack
import pytest
from network import missing

from benchmarks import pages, webhook
from benchmarks.comparison import compare
from benchmarks.crew import Crew, CrewError, Line, WrongResultError
from benchmarks.goals import Goal, judge
from benchmarks.measures import cuts, stream
from benchmarks.measures.base import Bench, Figures, Measure, percentile
from benchmarks.measures.jobs import Job, check_jobs
from benchmarks.messages import check, message, text_for
from benchmarks.own_network import RECEIVE_BUFFERS, own_network
from benchmarks.peers import peer
from benchmarks.run import MEASURES, Entry, Result, _measure_once, _order
from benchmarks.servers import Addresses

ROOT = Path(__file__).parents[2]
MAY_BE_ZERO = ("groups_left", "_client_bytes", "_server_bytes", "_cpu_percent")
needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the history of the repository")


@pytest.mark.slow
@pytest.mark.redis
def test_a_quick_run_writes_positive_figures_for_every_measure_and_peer(tmp_path: Path) -> None:
    """A quick run measures every peer, finds no fault, and writes positive figures to the JSON file."""
    path = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--json", str(path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    content = json.loads(path.read_text())
    assert content["failures"] == []
    for measure in MEASURES:
        found = content["measures"][measure.name]
        assert set(found) == set(measure.peers)
        for figures in found.values():
            assert figures
            for name, figure in figures.items():
                assert figure["rounds"]
                assert figure["median"] > 0 or name.endswith(MAY_BE_ZERO)
    assert {goal["met"] for goal in content["goals"]} <= {True, False}
    assert "ratio" in ran.stdout


@pytest.mark.slow
@needs_git
def test_a_quick_run_compares_ours_with_another_commit(tmp_path: Path) -> None:
    """A run with a base compares every common figure for both topologies, and removes the other commit's tree."""
    path, folder = tmp_path / "figures.json", tmp_path / "temporary"
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "2", "--json", str(path), "--base", "HEAD"]
    command += ["--no-peers", "--only", "throughput", "--tolerance", "5"]
    environment = os.environ | {"TMPDIR": str(folder)}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    content = json.loads(path.read_text())
    assert set(content["measures"]["throughput"]) == {"dedicated", "base-dedicated", "embedded", "base-embedded"}
    compared = {(one["layer"], one["figure"]): one for one in content["comparisons"]}
    assert len(compared) == 4
    assert all(one["low"] <= one["ratio"] <= one["high"] and one["limit"] == 0.95 for one in compared.values())
    assert "ours beside HEAD" in ran.stdout
    assert not list(folder.iterdir())


@pytest.mark.slow
@needs_git
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_interrupted_leaves_no_tree(tmp_path: Path, number: signal.Signals) -> None:
    """A signal ends the processes of a run first, and then removes the other commit's tree."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--base", "HEAD", "--no-peers", "--only", "throughput"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "round 1" in process.stderr.readline()
        assert list(tmp_path.glob("bench-base-*"))
        process.send_signal(number)
        said = process.stderr.read()
        assert process.wait(60) != 0, said
    assert not list(tmp_path.glob("bench-base-*"))


@needs_git
def test_a_commit_that_does_not_exist_is_named() -> None:
    """An unknown commit is named in the error, with status 2, before anything is measured."""
    command = [sys.executable, "-m", "benchmarks", "--base", "no-such-commit", "--no-peers", "--only", "jobs"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert "no-such-commit" in ran.stderr
    assert "round" not in ran.stderr


def test_a_layer_of_another_tree_is_never_silently_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without the package raises ImportError instead of measuring our own package."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ImportError, match="which is not in"):
        replace(peer("embedded-local", Addresses()), path=(str(tmp_path),)).open()


def rounds(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


@pytest.mark.parametrize(
    "figure, ours, met, clear",
    [
        ("p50_us", rounds(*[102] * 5), True, True),
        ("p50_us", rounds(*[104] * 5), False, True),
        ("p50_us", rounds(99, 100, 102, 119, 120), True, False),
        ("p50_us", rounds(*[50] * 5), True, True),
        ("p50_us", rounds(50, 50), True, False),
        ("jobs_per_s", rounds(*[98] * 5), True, True),
        ("jobs_per_s", rounds(*[96] * 5), False, True),
        ("jobs_per_s", rounds(99, 98, 96, 96, 95), False, False),
        ("jobs_per_s", rounds(*[200] * 5), True, True),
        ("cuts_share", rounds(*[96] * 5), False, True),
    ],
)
def test_a_figure_may_be_worse_by_the_tolerance(figure: str, ours: dict[int, float], met: bool, clear: bool) -> None:
    """A figure may be worse by the tolerance: more for a time, less for a rate.

    Few rounds, or an interval around the limit, are unclear.
    """
    (found,) = compare("m", "dedicated", {figure: ours}, {figure: rounds(*[100] * 5)}, 3)
    assert (found.met, found.clear) == (met, clear)
    assert found.low <= found.ratio <= found.high


def test_only_rounds_of_both_are_compared() -> None:
    """Only rounds of both sides are compared: a machine that is slow for a while says nothing about the code."""
    ours, base = {0: 100.0, 1: 300.0, 2: 100.0}, {1: 300.0, 2: 100.0, 3: 7.0}
    (found,) = compare("m", "dedicated", {"p50_us": ours, "p99_us": ours}, {"p50_us": base}, 3)
    assert (found.ours, found.base, found.ratio) == (200.0, 200.0, 1.0)


def test_a_zero_of_the_base_is_not_compared() -> None:
    """A round in which the base is zero is not compared, since no figure is a multiple of it; other rounds count."""
    assert compare("m", "dedicated", {"groups_left": rounds(0, 3)}, {"groups_left": rounds(0, 0)}, 3) == []
    (found,) = compare("m", "dedicated", {"lost": rounds(4, 4)}, {"lost": rounds(0, 2)}, 3)
    assert (found.ours, found.base, found.ratio) == (4.0, 2.0, 2.0)


def test_what_is_compared_is_measured_back_to_back_in_turns() -> None:
    """Compared entries are measured back to back and in alternating order.

    So a change of the machine's speed affects both, and neither is always second.
    """
    bench = Bench(Addresses(), "asyncio", quick=True)
    pairs = [[Entry("a", "a", bench), Entry("base-a", "a", bench)], [Entry("b", "b", bench)]]
    order = [[[one.label for one in pair] for pair in _order(pairs, turn)] for turn in range(3)]
    assert order == [[["a", "base-a"], ["b"]], [["b"], ["base-a", "a"]], [["a", "base-a"], ["b"]]]


@pytest.mark.parametrize("side_by_side", [True, False])
def test_what_can_be_measured_side_by_side_is(side_by_side: bool) -> None:
    """Two entries are measured in one call if the measure supports that, and then share a failure.

    A peer without a base is measured alone.
    """
    calls: list[list[str]] = []

    def run(bench: Bench, name: str) -> Figures:
        return run_in_turns([bench], name)[0]

    def run_in_turns(benches: Sequence[Bench], name: str) -> list[Figures]:
        calls.append([name, *(bench.loop for bench in benches)])
        if name == "b":
            raise WrongResultError("odd")
        return [{"x_us": float(len(bench.loop))} for bench in benches]

    measure = Measure("m", "", ("a", "b"), run, (), in_turns=run_in_turns if side_by_side else None)
    ours, base = (Bench(Addresses(), loop, quick=True) for loop in ("asyncio", "uvloop"))
    result = Result()
    for name in "ab":
        _measure_once(measure, [Entry(name, name, ours), Entry(f"base-{name}", name, base)], 0, result)
    _measure_once(measure, [Entry("alone", "alone", ours)], 0, result)
    pairs = [["a", "asyncio", "uvloop"], ["b", "asyncio", "uvloop"]]
    singles = [[name, loop] for name in "ab" for loop in ("asyncio", "uvloop")]
    assert calls == [*(pairs if side_by_side else singles), ["alone", "asyncio"]]
    assert result.figures == {"m": {"a": {"x_us": {0: 7.0}}, "base-a": {"x_us": {0: 6.0}}, "alone": {"x_us": {0: 7.0}}}}
    failed = ["b and base-b"] if side_by_side else ["b", "base-b"]
    assert result.failures == [f"WRONG: m, {which}, round 1: odd" for which in failed]


@pytest.mark.slow
def test_the_webhooks_benchmark_reports_its_figures(tmp_path: Path) -> None:
    """The webhook's benchmark runs one real replica, checks every review, and writes its figures to the JSON file."""
    path = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.webhook", "--seconds", "1", "--rate", "50", "--json", str(path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    content = json.loads(path.read_text())
    assert content["failures"] == []
    figures = content["figures"]
    assert figures["reviews"] == 50
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["longest_ms"]
    assert content["goals"][0]["met"] in (True, False)
    assert "p99" in ran.stdout


@pytest.mark.parametrize(
    "response, said",
    [
        ({"uid": "00000000-0000-0000-0000-000000000007", "allowed": True, "patch": "W10="}, ""),
        ({"uid": "00000000-0000-0000-0000-000000000008", "allowed": True, "patch": "W10="}, "another one"),
        ({"uid": "00000000-0000-0000-0000-000000000007", "allowed": True}, "no patch"),
        ({"uid": "00000000-0000-0000-0000-000000000007", "allowed": False, "status": {}}, "no patch"),
    ],
)
def test_a_wrong_answer_of_the_webhook_is_named(response: dict[str, object], said: str) -> None:
    """Only a patch for the pod of the review is right; any other answer is named."""
    found = webhook.fault(7, {"response": response})
    assert said in found
    assert bool(found) is bool(said)


def test_a_message_out_of_turn_or_changed_is_named() -> None:
    """A receiver names a message that arrived instead of the expected one, or whose content was changed."""
    check(message(7), 7, "somebody")
    with pytest.raises(WrongResultError, match="somebody: message 8 instead of 7"):
        check(message(8), 7, "somebody")
    with pytest.raises(WrongResultError, match="somebody: wrong content in 7"):
        check({**message(7), "text": "?"}, 7, "somebody")


@pytest.mark.parametrize("size", [100, 1_000, 100_000, 1_000_000])
def test_a_text_makes_a_message_of_a_size(size: int) -> None:
    """A text results in a message of the given size, plus the bytes of its number and of the text's length."""
    assert size <= len(ormsgpack.packb(message(100_000, text_for(size)))) <= size + 8


def test_a_stream_is_spread_evenly() -> None:
    """Each job has the same number of watching processes, each process watches as many jobs, and all events count."""
    watched = [stream.watchers(job) for job in range(stream.JOBS)]
    assert {len(one) for one in watched} == {stream.WATCHERS}
    counts = [sum(index in one for one in watched) for index in range(stream.CONSUMERS)]
    assert counts == [stream.JOBS * stream.WATCHERS // stream.CONSUMERS] * stream.CONSUMERS
    for count in (1, 199, 200, 1_001):
        assert sum(stream.deliveries(index, count) for index in range(stream.CONSUMERS)) == count * stream.WATCHERS


@pytest.mark.parametrize(
    "seen, fault",
    [
        ([[(0, 0)], [(0, 2)]], "1 lost"),
        ([[(0, 0), (0, 1)], [(0, 1), (0, 2)]], "1 twice"),
        ([[(0, 1), (0, 0)], [(0, 2)]], "1 out of order"),
        ([[(0, 0), (0, 1), (0, 2), (0, 3)], []], "1 strange"),
    ],
)
def test_jobs_that_are_lost_repeated_or_out_of_order_are_wrong(seen: list[list[Job]], fault: str) -> None:
    """A job of ours that is lost, repeated, out of order or unknown is a wrong result."""
    bench = Bench(Addresses(), "asyncio", quick=True)
    with pytest.raises(WrongResultError, match=fault):
        check_jobs(bench, "dedicated", seen, {(0, 0), (0, 1), (0, 2)})


def test_the_share_that_arrives_counts_each_message_once_for_each_receiver() -> None:
    """The share counts each message once for each receiver.

    A repetition by a Redis layer is noted; one by ours, or a message that was never sent, is wrong.
    """
    bench = Bench(Addresses(), "asyncio", quick=True)
    assert cuts.share("cuts", bench, "dedicated", [[0, 1, 2, 3], [0, 3]], 4) == 0.75
    assert cuts.share("cuts", bench, "redis-core", [[0, 1, 1, 0], []], 4) == 0.25
    assert bench.notes == ["cuts, redis-core: 2 messages came twice, 1 out of order"]
    for seen in ([0, 0], [1, 0], [4]):
        with pytest.raises(WrongResultError):
            cuts.share("cuts", bench, "dedicated", [seen], 4)


def test_repeats_of_redis_core_are_noted_and_losses_are_wrong() -> None:
    """A repetition by redis-core, which is a known defect, is noted; any other fault ends the run."""
    bench = Bench(Addresses(), "asyncio", quick=True)
    check_jobs(bench, "redis-core", [[(0, 0), (0, 1)], [(0, 1)]], {(0, 0), (0, 1)})
    assert bench.notes == ["jobs, redis-core: of 2 jobs 1 were handed out twice, 0 out of order"]
    with pytest.raises(WrongResultError, match="1 lost"):
        check_jobs(bench, "redis-core", [[(0, 0)], []], {(0, 0), (0, 1)})


def _fail(line: Line, error: Exception) -> None:
    raise error


def _vanish(line: Line) -> None:
    os._exit(3)


def test_a_wrong_result_in_another_process_reaches_the_harness() -> None:
    """A wrong result in another process raises in the harness, even from a task group.

    Any other failure includes its traceback.
    """
    for error in (WrongResultError("bad"), ExceptionGroup("tasks", [WrongResultError("bad")])):
        with pytest.raises(WrongResultError, match=r"^bad$"), Crew("asyncio") as crew:
            crew.take(crew.start(_fail, error))
    with pytest.raises(CrewError, match=r"_fail failed:(.|\n)*KeyError: 'x'"), Crew("asyncio") as crew:
        crew.take(crew.start(_fail, KeyError("x")))


def test_a_process_that_vanishes_is_noticed() -> None:
    """A process that vanishes raises CrewError, so that nothing waits for it."""
    with pytest.raises(CrewError, match="_vanish ended too early"), Crew("asyncio") as crew:
        crew.take(crew.start(_vanish))


def test_a_goal_is_a_ratio_and_is_open_while_one_side_is_missing() -> None:
    """A goal is our figure divided by the peer's, and is undecided while one side was not measured."""
    goal = Goal("p50_us", "raw", "<=", 1.25)
    raw = {"raw": {"p50_us": rounds(100, 120, 80)}}
    found = judge("m", goal, {"dedicated": {"p50_us": rounds(120, 60, 200)}} | raw)
    assert (found.met, found.ratio, found.low, found.high) == (True, 1.2, 0.5, 2.5)
    assert judge("m", goal, {"dedicated": {"p50_us": rounds(126)}} | raw).met is False
    assert judge("m", goal, raw).met is None


def test_a_goal_may_name_another_figure_or_none() -> None:
    """A goal may compare with another figure of the peer, or be a share that depends on no machine."""
    figures = {"dedicated": {"late_us": rounds(50), "lost": rounds(0)}, "raw": {"p50_us": rounds(100)}}
    assert judge("m", Goal("late_us", "raw", "<=", 1.0, than="p50_us"), figures).ratio == 0.5
    found = judge("m", Goal("lost", "", "<=", 0), figures)
    assert (found.ratio, found.met) == (0, True)


def test_pages_show_what_a_run_found() -> None:
    """Pages show medians with units, the ratio, and the goal.

    Only goals with a headline are in the README and in the plot.
    """
    goals = [
        Goal("p50_us", "redis-core", "<=", 0.5, headline="a round trip"),
        Goal("messages_per_s", "redis-core", ">=", 2),
    ]
    figures = {
        "dedicated": {"p50_us": rounds(1_200), "messages_per_s": rounds(3_000)},
        "redis-core": {"p50_us": rounds(4_800), "messages_per_s": rounds(2_000)},
    }
    run = {
        "titles": {"m": "the measure"},
        "goals": [asdict(judge("m", goal, figures)) for goal in goals],
        "measures": {
            "m": {peer: {name: {"median": one[0]} for name, one in each.items()} for peer, each in figures.items()}
        },
    }
    assert list(pages.headlines(run))[2:] == [
        "| a round trip | dedicated 1.2 ms | Redis core 4.8 ms | 0.25 | at most 0.5, met |"
    ]
    assert list(pages.goals(run))[3] == (
        "| the measure | `messages_per_s` | dedicated 3,000/s | Redis core 2,000/s | 1.5 (1.5-1.5) "
        "| at least 2, missed |"
    )
    assert list(pages.figures(run, "m"))[2] == "| `p50_us` | 1.2 ms | 4.8 ms |"
    texts = [one.text for one in ET.fromstring(pages.plot(run)).findall("{*}text")]
    assert "a round trip / Redis core" in texts
    assert "4" in texts
    assert not any("messages" in str(text) for text in texts)


def test_the_latency_plot_has_a_curve_for_each_peer() -> None:
    """The latency plot has one curve for each peer, which extends further for a layer with a higher rate."""
    loads = {f"load_{load}_p99_us": {"median": 1_000.0 * load} for load in (20, 50, 80)}
    peers = {
        "dedicated": loads | {"messages_per_s": {"median": 40}},
        "redis-core": loads | {"messages_per_s": {"median": 20}},
    }
    lines = ET.fromstring(pages.latency_plot({"measures": {"websockets": peers}})).findall("{*}polyline")
    ends = [float(line.attrib["points"].split()[-1].partition(",")[0]) for line in lines]
    assert len(ends) == 2
    assert ends[0] > ends[1]


def test_percentiles_are_nearest_ranks_in_microseconds() -> None:
    """A percentile is the nearest rank in microseconds, as for the 50th and the 99th of 1..100."""
    times = [n * 1_000 for n in range(100, 0, -1)]
    assert (percentile(times, 50), percentile(times, 99), percentile(times[:1], 99)) == (50.0, 99.0, 100.0)


@pytest.mark.skipif(bool(lacking := missing("ip")), reason=lacking)
def test_a_measure_may_run_in_a_network_of_its_own_and_leaves_it() -> None:
    """A measure may run in a network namespace with large receive buffers; the thread returns to its former one."""
    namespace, buffers = Path("/proc/thread-self/ns/net"), Path("/proc/sys/net/ipv4/tcp_rmem")
    before = namespace.readlink(), buffers.read_text()
    with own_network() as is_permitted:
        assert is_permitted
        assert namespace.readlink() != before[0]
        assert buffers.read_text().split() == RECEIVE_BUFFERS.split()
        subprocess.run(["ip", "route", "get", "127.0.0.1"], check=True, stdout=subprocess.DEVNULL)
    assert (namespace.readlink(), buffers.read_text()) == before
