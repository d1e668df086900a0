"""The operator: it runs the forwarders of each ZmqChannelLayer, and injects their addresses into pods."""

__version__ = "0.1.0"
