"""What people use beside a running application: the parts of the management command and of the system checks.

Nothing on a message's way belongs here, and the layers never import it. A module here returns data or lines of text;
`management/commands/channels_zmq.py` parses the arguments and prints.

ToolError                       what a command cannot do, and what to change
"""


class ToolError(Exception):
    """A command cannot do what it was asked for; the message says why and what to change."""
