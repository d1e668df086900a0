"""When a forwarder that has just started accepts producers: once the subscribers of the last one are back.

Pure. For the rule, and what is lost without it, see docs/design/0003.
"""

from channels_zmq_forwarder.exchange import Exchange

BESIDE_OTHERS = 60.0
"""Seconds that a forwarder may take to start while clients are served by others, which lack nothing meanwhile."""


def has_settled(exchange: Exchange, waited: float, at_least: float, at_most: float) -> bool:
    """Return whether producers may be accepted.

    As many clients have to have connected as any of them knows of. Whether they know of all shows only after a while,
    unless an exchange keeps the last messages: then a client that comes late gets what it has missed.

    Args:
        exchange: It has just started.
        waited: Seconds for which subscribers have been accepted.
        at_least: Seconds to wait while it is unknown how many clients there are.
        at_most: Seconds to wait for clients that do not come back, unless others serve.
    """
    if waited >= (max(at_most, BESIDE_OTHERS) if exchange.directory.serves else at_most):
        return True
    if len(exchange.clients) < exchange.peers_expected:
        return False
    return waited >= at_least or (exchange.peers_expected > 0 and exchange.history.max_bytes > 0)
