"""The application for `INSTALLED_APPS`: it adds the system checks and the management command.

The layers work without it.
"""

from django.apps import AppConfig


class ChannelsZmqConfig(AppConfig):  # type: ignore[misc] # Django has no type information
    """`INSTALLED_APPS += ["channels_zmq"]`."""

    name = "channels_zmq"
    verbose_name = "channels-zmq"

    def ready(self) -> None:
        """Register the system checks."""
        from channels_zmq import checks  # not with the settings: it imports both layers

        checks.register()
