#!/usr/bin/env python
"""Django's command line for the chat: `manage.py runworker jobs` runs a worker."""

import os
import signal
import sys
from types import FrameType


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat.settings")
    # `runworker` exits in order on Ctrl-C only, and a supervisor (Kubernetes, systemd) sends SIGTERM.
    signal.signal(signal.SIGTERM, interrupt)
    from django.core.management import execute_from_command_line  # the settings module has to be named first

    execute_from_command_line(sys.argv)


def interrupt(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
