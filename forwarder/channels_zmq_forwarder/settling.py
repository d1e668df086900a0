"""When a forwarder that has just started accepts producers: once the subscribers of the last one have reconnected.

Pure. For the rule, and the losses without it, see docs/design/0003.
"""

from channels_zmq_forwarder.exchange import Exchange

BESIDE_OTHERS = 60.0
"""Seconds that a forwarder may take to start while others serve its clients, which lack nothing meanwhile."""
SURE = 0.5
"""Share of the minimum time that suffices if any client reports how many there are, and all of these have connected."""


def has_settled(exchange: Exchange, waited: float, at_least: float, at_most: float) -> bool:
    """Return whether producers may be accepted: the number of clients that any of them reports has connected.

    That number may be too low. So a minimum time passes in any case, and half of it if there is a number and the
    exchange keeps the last messages: then a client that connects later still gets those that it has missed.

    Args:
        exchange: It has just started.
        waited: Seconds for which subscribers have been accepted.
        at_least: The minimum time in seconds.
        at_most: Seconds to wait for missing clients; at least `BESIDE_OTHERS` while other forwarders serve.
    """
    if waited >= (max(at_most, BESIDE_OTHERS) if exchange.directory.serves else at_most):
        return True
    if len(exchange.clients) < exchange.peers_expected:
        return False
    is_sure = exchange.peers_expected > 0 and exchange.history.max_bytes > 0
    return waited >= (SURE * at_least if is_sure else at_least)
