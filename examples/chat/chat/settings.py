"""Django's settings, all from the environment.

`CHANNELS_ZMQ_...` configures the channel layer (none set: embedded, for one process); `CHAT_...` the chat.
"""

import os

from django.core.management.utils import get_random_secret_key

import channels_zmq

# The layer sends a message of these types to the channel of every local consumer, which shows a banner in the page.
os.environ.setdefault("CHANNELS_ZMQ_ON_DISCONNECT", "layer.disconnected")
os.environ.setdefault("CHANNELS_ZMQ_ON_RECONNECT", "layer.reconnected")
# The channels in which the counting page's numbers wait, for as long as a forwarder may be away.
os.environ.setdefault("CHANNELS_ZMQ_CHANNEL_CAPACITY", '{"counting.*": 100000}')
CHANNEL_LAYERS = channels_zmq.channel_layers_from_env()

DEBUG = os.environ.get("CHAT_DEBUG", "") == "1"
ALLOWED_HOSTS = os.environ.get("CHAT_ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]").split(",")
SECRET_KEY = os.environ.get("CHAT_SECRET_KEY") or get_random_secret_key()  # nothing here outlives a process

INSTALLED_APPS = ["django.contrib.staticfiles", "channels", "channels_zmq", "chat"]
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "chat.views.content_security_policy"]
ROOT_URLCONF = "chat.urls"
ASGI_APPLICATION = "chat.asgi.application"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
STATIC_URL = "/static/"
TIME_ZONE = "UTC"
USE_TZ = True
DATABASES: dict[str, object] = {}

# The name of this process in the pages, which shows that users are on different processes.
CHAT_PROCESS = os.environ.get("CHAT_PROCESS", f"process {os.getpid()}")
# An embedded layer is one process, so the jobs run in it too. With a forwarder: `manage.py runworker jobs`.
_embedded = "0" if os.environ.get("CHANNELS_ZMQ_PULL_SOCKET_ADDRESS") else "1"
CHAT_JOBS_IN_PROCESS = os.environ.get("CHAT_JOBS_IN_PROCESS", _embedded) == "1"
# Forwarders that the counting page may kill, by a request to the process that has started them: `demo.py`.
CHAT_FORWARDERS = int(os.environ.get("CHAT_FORWARDERS", "0"))
# Seconds between the steps of a job: long enough to see its progress.
CHAT_JOB_PAUSE = float(os.environ.get("CHAT_JOB_PAUSE", "0.25"))
# Seconds between two heartbeats of a member; a member that missed three of them is removed.
CHAT_BEAT_SECONDS = float(os.environ.get("CHAT_BEAT_SECONDS", "5"))
