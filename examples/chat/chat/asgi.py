"""The ASGI application: pages and static files, the WebSockets, the worker's channel."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat.settings")

from channels.layers import get_channel_layer
from channels.routing import ChannelNameRouter, ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from channels.worker import Worker
from django.conf import settings
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from django.urls import path

from chat import counting, jobs
from chat.consumers import RoomConsumer
from chat.lifespan import Lifespan


async def work() -> None:
    """Run in this process the worker that `manage.py runworker jobs` runs in its own."""
    await Worker(application, [jobs.CHANNEL], get_channel_layer()).arun()


async def count() -> None:
    """Count in this process the messages from the pages of all processes."""
    await counting.tally(settings.CHAT_PROCESS)


counter = counting.CountingConsumer.as_asgi(process=settings.CHAT_PROCESS, forwarders=settings.CHAT_FORWARDERS)
room = RoomConsumer.as_asgi(process=settings.CHAT_PROCESS, beat_seconds=settings.CHAT_BEAT_SECONDS)

sockets = [path("ws/room/<str:room>/", room), path("ws/counting/", counter)]

application = ProtocolTypeRouter(
    {
        "http": ASGIStaticFilesHandler(get_asgi_application()),
        "websocket": AllowedHostsOriginValidator(URLRouter(sockets)),
        "channel": ChannelNameRouter({jobs.CHANNEL: jobs.JobsConsumer.as_asgi(pause=settings.CHAT_JOB_PAUSE)}),
        "lifespan": Lifespan(count, *([work] if settings.CHAT_JOBS_IN_PROCESS else [])),
    }
)
