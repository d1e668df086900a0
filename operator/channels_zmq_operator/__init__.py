"""The operator: from a ZmqChannelLayer resource to running forwarders. Nothing is implemented yet."""

__version__ = "0.1.0"
