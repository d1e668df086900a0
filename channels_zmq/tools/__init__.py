"""Tools beside a running application: the parts of the management command and of the system checks.

Messages never pass through this package, and the layers never import it. Its modules return data or lines of text;
`management/commands/channels_zmq.py` parses the arguments and prints.

ToolError                       why a command failed, and what to change
"""


class ToolError(Exception):
    """A command cannot be carried out; the message states why and what to change."""
