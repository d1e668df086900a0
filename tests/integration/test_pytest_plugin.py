"""The fixtures and helpers for tests of applications, used in a pytest process of their own."""

import os
from pathlib import Path

import pytest

from channels_zmq.testing import ForwarderProcess

pytestmark = pytest.mark.slow

pytest_plugins = ["pytester"]

SETTINGS = """
import pytest
from django.conf import settings

settings.configure(
    CHANNEL_LAYERS={
        "default": {"BACKEND": "channels_redis.core.RedisChannelLayer"},
        "other": {"BACKEND": "channels.layers.InMemoryChannelLayer"},
    }
)
"""
INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""


@pytest.fixture(autouse=True)
def project(pytester: pytest.Pytester) -> None:
    """Make a project whose settings name a layer without a running forwarder."""
    pytester.makeini(INI)
    pytester.makeconftest(SETTINGS)


def passes(pytester: pytest.Pytester, code: str, passed: int, *arguments: str) -> pytest.RunResult:
    """Run tests in a process of their own, and check that all of them pass."""
    pytester.makepyfile(code)
    done = pytester.runpytest_subprocess("-q", *arguments)
    done.assert_outcomes(passed=passed)
    return done


BOTH = """
import pytest
from channels.layers import get_channel_layer
from channels_zmq.testing import GroupListener

@pytest.fixture(params=["channel_layer", "dedicated_channel_layer"], autouse=True)
def layer(request):
    return request.getfixturevalue(request.param)
"""


def test_the_layer_of_a_test_stands_in_the_place_of_default(pytester: pytest.Pytester) -> None:
    """The test's layer replaces the alias `default`, with and without an event loop, and no other alias."""
    code = """
    from asgiref.sync import async_to_sync

    async def test_async(layer):
        assert get_channel_layer() is layer
        assert type(get_channel_layer("other")).__name__ == "InMemoryChannelLayer"
        async with GroupListener("room") as listener:
            await get_channel_layer().group_send("room", {"type": "a", "n": 1})
            await get_channel_layer().group_send("room", {"type": "a", "n": 2})
            assert [(await listener.receive(20))["n"] for _ in range(2)] == [1, 2]

    def test_sync(layer):
        with GroupListener("room") as listener:
            async_to_sync(get_channel_layer().group_send)("room", {"type": "a"})
            assert listener.receive_sync(timeout=20) == {"type": "a"}
    """
    passes(pytester, BOTH + dedented(code), 4)


def test_a_test_sees_nothing_of_the_one_before(pytester: pytest.Pytester) -> None:
    """A test sees neither messages nor members of an earlier one, and the settings are restored afterwards."""
    code = """
    from django.conf import settings
    from channels_zmq import connections

    @pytest.mark.parametrize("turn", range(3))
    async def test_alone(layer, turn):
        with pytest.raises(AssertionError, match="no message to group 'room' within 0.01 s"):
            async with GroupListener("room") as listener:
                await listener.receive(0.01)
        channel = await layer.new_channel()
        await layer.group_add("room", channel)
        await layer.send("jobs", {"type": "job", "turn": turn})
        await layer.send("jobs", {"type": "job", "turn": turn})
        assert (await layer.receive("jobs"))["turn"] == turn
        assert len(connections.connections()) == 1

    @pytest.fixture(scope="module", autouse=True)
    def afterwards():
        yield
        assert settings.CHANNEL_LAYERS["default"]["BACKEND"] == "channels_redis.core.RedisChannelLayer"
        assert connections.connections() == []
    """
    passes(pytester, BOTH + dedented(code), 6)


def test_each_worker_of_xdist_has_a_forwarder_of_its_own(pytester: pytest.Pytester) -> None:
    """Each worker of xdist has a forwarder of its own, and each test a layer, so no two of them meet."""
    code = """
    import os, pathlib

    @pytest.mark.parametrize("number", range(6))
    async def test_alone(layer, number, zmq_forwarder):
        worker = os.environ["PYTEST_XDIST_WORKER"]
        folder = pathlib.Path(zmq_forwarder.config["pub_socket_address"]).parent.name
        pathlib.Path(f"seen {worker} {folder}").touch()
        async with GroupListener("room") as listener:
            await layer.group_send("room", {"type": "a", "n": number})
            assert (await listener.receive(20))["n"] == number
    """
    passes(pytester, BOTH + dedented(code), 12, "-n", "2")
    seen = [path.name.split()[1:] for path in pytester.path.glob("seen *")]
    assert len({worker for worker, _ in seen}) == len({folder for _, folder in seen}) == len(seen) == 2


def test_config_comes_from_a_fixture(pytester: pytest.Pytester) -> None:
    """A fixture sets the CONFIG of the layer, such as a share of messages to lose in tests of resilience."""
    code = """
    @pytest.fixture
    def channel_layer_config():
        return {"capacity": 2, "drop_rate": 1.0}

    async def test_loss(layer):
        assert layer.capacity == 2
        async with GroupListener("room") as listener:
            await layer.group_send("room", {"type": "a"})
            with pytest.raises(AssertionError):
                await listener.receive(0.01)
        assert layer.stats()["dropped"] == {"drop_rate": 1}
    """
    passes(pytester, BOTH + dedented(code), 2)


def test_nothing_is_imported_by_tests_that_use_none_of_it(pytester: pytest.Pytester) -> None:
    """Tests that do not use the plugin import neither this library nor its dependencies.

    Pytest loads the plugin in every run, also in projects that only have this package installed.
    """
    pytester.makeconftest("")
    code = """
    import sys

    def test_nothing():
        assert "channels_zmq.pytest_plugin" in sys.modules
        unwanted = {"channels_zmq.core", "channels_zmq.config", "channels", "django", "pydantic", "zmq"}
        assert not unwanted & set(sys.modules)
    """
    passes(pytester, dedented(code), 1, "-p", "no:anyio")


def test_without_django_settings_the_reason_is_clear(pytester: pytest.Pytester) -> None:
    """Without Django settings, the error states that a layer can replace an alias only if they are configured."""
    pytester.makeconftest("")
    pytester.makepyfile("def test_layer(channel_layer): pass")
    done = pytester.runpytest_subprocess("-q")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*settings are not configured*"])


def test_a_forwarder_can_be_ended_and_started_again() -> None:
    """A forwarder can be stopped, killed and started again, and its folder is removed at the end."""
    with ForwarderProcess() as forwarder:
        folder = Path(forwarder.config["pub_socket_address"].removeprefix("ipc://")).parent
        assert folder.is_dir()
        for kill in (True, False):
            forwarder.stop(kill=kill)
            forwarder.start()
    assert not folder.exists()


def test_a_forwarder_that_does_not_start_says_why() -> None:
    """If a forwarder does not start, the error contains its log, and no folder remains."""
    own = ForwarderProcess("--queue-names", "none")
    folder = Path(own.config["pub_socket_address"].removeprefix("ipc://")).parent
    with pytest.raises(RuntimeError, match=r"(?s)does not start.*queue-names"), own:
        pass
    assert not folder.exists()


def test_variables_of_the_environment_do_not_reach_a_forwarder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the environment, as for a forwarder of the application, do not affect this forwarder."""
    monkeypatch.setenv("CHANNELS_ZMQ_FORWARDER_MAX_MESSAGE_SIZE", "none")
    with ForwarderProcess():
        assert os.environ["CHANNELS_ZMQ_FORWARDER_MAX_MESSAGE_SIZE"] == "none"


def dedented(code: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in code.splitlines())
