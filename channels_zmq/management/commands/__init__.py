"""One command, whose subcommands are functions of `channels_zmq.tools`."""
