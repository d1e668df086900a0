"""A Django project with channel layers, in its own folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from forwarders import PATIENCE

SETTINGS = """
import json, pathlib
SECRET_KEY = "for tests"
DEBUG = {debug}
USE_TZ = True
INSTALLED_APPS = {apps}
CHANNEL_LAYERS = json.loads((pathlib.Path(__file__).parent / "layers.json").read_text())
"""
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("DJANGO_", "CHANNELS_ZMQ"))}


class Project:
    """A project whose `manage.py` runs in separate processes.

    Args:
        folder: The empty folder of the project.
        layers: `CHANNEL_LAYERS`.
        debug: `DEBUG`.
        apps: `INSTALLED_APPS`.
    """

    def __init__(
        self, folder: Path, layers: dict[str, Any], *, debug: bool = False, apps: tuple[str, ...] = ("channels_zmq",)
    ) -> None:
        self.folder = folder
        (folder / "project_settings.py").write_text(SETTINGS.format(debug=debug, apps=apps))
        (folder / "layers.json").write_text(json.dumps(layers))

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        """Start `manage.py` with these arguments."""
        command = [sys.executable, "-W", "error", "-m", "django", *arguments]
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        environment = {**ENVIRONMENT, "PYTHONPATH": str(self.folder), "DJANGO_SETTINGS_MODULE": "project_settings"}
        return subprocess.Popen(command, text=True, cwd=self.folder, env=environment, **options)

    def manage(self, *arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
        """Run `manage.py` with these arguments and a text on standard input, and wait for its end."""
        process = self.start(*arguments)
        out, error = process.communicate(text, timeout=PATIENCE)
        return subprocess.CompletedProcess(arguments, process.returncode, out, error)
