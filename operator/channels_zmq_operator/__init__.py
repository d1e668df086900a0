"""The operator: from a ZmqChannelLayer resource to running forwarders, and to their addresses in pods."""

__version__ = "0.1.0"
