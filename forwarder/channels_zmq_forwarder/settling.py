"""When a forwarder that has just started accepts producers: once the subscribers of the last one should be back.

Pure. For the rule, and what is lost without it, see docs/design/0003.
"""

from channels_zmq_forwarder.exchange import Exchange

BESIDE_OTHERS = 60.0
"""Seconds that a forwarder may take to start while clients are served by others, which lack nothing meanwhile."""
SURE = 0.5
"""Share of the time to wait at least that suffices when as many clients are back as one of them knows of."""


def has_settled(exchange: Exchange, waited: float, at_least: float, at_most: float) -> bool:
    """Return whether producers may be accepted: as many clients have connected as any of them knows of.

    They may know of too few. So it takes a time in any case, and half of that if any knows a number and the exchange
    keeps the last messages: then one that comes later still gets what it has missed.

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
    is_sure = exchange.peers_expected > 0 and exchange.history.max_bytes > 0
    return waited >= (SURE * at_least if is_sure else at_least)
