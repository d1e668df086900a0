"""A Celery application: when the worker is ready, it enqueues tasks, each of which sends one message.

The environment gives the layer, the folder of the broker, the number of tasks and the targets of the messages.
"""

import os
from pathlib import Path
from typing import Any

from asgiref.sync import async_to_sync
from celery import Celery, signals

from channels_zmq.core import DedicatedZmqChannelLayer
from channels_zmq.environment import channel_layers_from_env

layer = DedicatedZmqChannelLayer(**channel_layers_from_env()["default"]["CONFIG"])
folder = Path(os.environ["BROKER_FOLDER"])
count = int(os.environ["TASKS"])
app = Celery("celery_tasks", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": str(folder),
        "data_folder_out": str(folder),
        "control_folder": str(folder / "control"),
        "polling_interval": 0.02,
    },
    broker_connection_retry_on_startup=False,
    task_ignore_result=True,
    worker_hijack_root_logger=False,
)


@app.task
def send(number: int) -> None:
    """Send one message and return: to the group if the number is even, else to the channel."""
    message = {"type": "test.message", "number": number}
    if number % 2:
        async_to_sync(layer.send)(os.environ["CHANNEL"], message)
    else:
        async_to_sync(layer.group_send)(os.environ["GROUP"], message)


@signals.worker_ready.connect
def begin(**_: Any) -> None:
    """Enqueue the tasks."""
    if os.environ.get("USED_BEFORE_FORK"):
        async_to_sync(layer.send)(os.environ["CHANNEL"], {"type": "test.message", "number": -1})
    for number in range(count):
        send.delay(number)
