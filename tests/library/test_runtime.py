"""The processes in which the layer cannot run."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from channels_zmq.errors import ConfigurationError
from channels_zmq.runtime import refuse_gevent

PROGRAM = """
from gevent import monkey
{patch}
from channels_zmq.errors import ConfigurationError
from channels_zmq.runtime import refuse_gevent
try:
    refuse_gevent()
except ConfigurationError as error:
    print(error)
else:
    print("fine")
"""


def said_after(patch: str) -> str:
    """Return the output of a fresh process that gevent has patched, since patching affects a whole process for good."""
    program = PROGRAM.format(patch=f"monkey.{patch}" if patch else "")
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return ran.stdout.strip()


@pytest.mark.parametrize(
    "patch, modules",
    [
        ("patch_all()", "threading, socket, select"),
        ("patch_all(socket=False, select=False)", "threading"),
        ("patch_socket()", "socket"),
        ("patch_select()", "select"),
    ],
)
def test_a_process_that_gevent_has_patched_is_refused(patch: str, modules: str) -> None:
    """A process that real gevent has patched is refused, with an error that names the modules and an alternative."""
    said = said_after(patch)
    assert said.startswith(f"gevent: it has monkey-patched {modules}, ")
    assert "gthread" in said


@pytest.mark.parametrize("patch", ["", "patch_time()"])
def test_gevent_that_has_patched_nothing_we_need_is_fine(patch: str) -> None:
    """A process in which gevent has patched no module of the layer is accepted: some libraries only import gevent."""
    assert said_after(patch) == "fine"


def test_this_process_is_fine() -> None:
    """An unpatched process is accepted, and the check imports neither gevent nor eventlet."""
    refuse_gevent()
    assert "gevent" not in sys.modules
    assert "eventlet" not in sys.modules


def test_a_process_that_eventlet_has_patched_is_refused() -> None:
    """A process that eventlet has patched is refused, and the error says threading, which eventlet calls `thread`."""
    patcher = SimpleNamespace(is_monkey_patched={"thread", "socket"}.__contains__)
    with pytest.raises(ConfigurationError, match="monkey-patched threading, socket, so") as caught:
        refuse_gevent({"eventlet.patcher": patcher})
    assert caught.value.setting == "eventlet"
