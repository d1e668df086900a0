"""The contents and the dependencies of the forwarder's distribution, and the tables of its README."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

from channels_zmq_forwarder.admin import DROP_CAUSES, Admin
from channels_zmq_forwarder.exchange import Exchange
from channels_zmq_forwarder.pump import Traffic

ROOT = Path(__file__).parents[2]
README = (ROOT / "forwarder" / "README.md").read_text(encoding="utf-8")


def test_the_forwarder_imports_neither_django_nor_channels() -> None:
    """No module of the forwarder imports Django or Channels, which its image does not have.

    A fresh interpreter imports every module.
    """
    code = (
        "import importlib, pkgutil, sys, channels_zmq_forwarder as package\n"
        "for module in pkgutil.iter_modules(package.__path__):\n"
        "    importlib.import_module(f'{package.__name__}.{module.name}')\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"channels_zmq_forwarder", "zmq", "aiohttp"} <= loaded
    assert not {"django", "channels", "asgiref", "channels_zmq"} & loaded


def test_the_wheel_holds_the_status_page(tmp_path: Path) -> None:
    """The wheel contains the status page and the marker of type information, and none of the tests."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT / "forwarder", check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"channels_zmq_forwarder/status.html", "channels_zmq_forwarder/py.typed"} <= names
    assert all(name.startswith(("channels_zmq_forwarder/", "channels_zmq_forwarder-")) for name in names)


def test_the_metrics_in_the_readme_are_those_that_there_are() -> None:
    """The README's table has exactly the forwarder's metrics, since dashboards and alerts are written from it."""
    families = [f for f in Admin(Exchange(bytes(8)), Traffic()).registry.collect() if f.name.startswith("channels_zmq")]
    there = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    assert set(re.findall(r"^\| `(channels_zmq_forwarder_\w+)", README, re.MULTILINE)) == there


def test_every_cause_of_drops_is_explained() -> None:
    """The README explains every cause of drops by its label value."""
    table = README[README.index("| cause |") :]
    assert set(re.findall(r"`([a-z_]+)`", table.partition("\n\n")[0])) == set(DROP_CAUSES)
