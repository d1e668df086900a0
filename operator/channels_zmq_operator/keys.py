"""The CURVE keys of a layer: made once, kept in the cluster's Secrets, and rotated with an overlap.

At a rotation applications get a new key and the one before stays allowed until the next rotation, so that every pod has
a whole period to take up the new one. The forwarders' own key does not change: it has no overlap in ZeroMQ.
"""

from base64 import b64decode
from datetime import UTC, datetime, timedelta

import zmq

from channels_zmq_operator.models import GROUP
from channels_zmq_operator.render import ENV, KEY_FILE, LayerKeys, Manifest

ROTATED_AT = f"{GROUP}/rotated-at"


def next_keys(server: Manifest | None, client: Manifest | None, rotate_every: float, now: datetime) -> LayerKeys:
    """Return the keys that a layer should have now: those of its Secrets, with what is missing or due made anew.

    Args:
        server: The forwarders' Secret, if there is one.
        client: The applications' Secret, if there is one.
        rotate_every: Seconds between rotations.
        now: Aware time.
    """
    server_secret = _valid(_read(server, KEY_FILE))
    client_secret = _valid(_read(client, f"{ENV}CURVE_SECRET_KEY"))
    allowed = [line for line in _read(server, "allowed-keys").split() if len(line) == 40]
    rotated_at = ((client or {}).get("metadata", {}).get("annotations") or {}).get(ROTATED_AT, "")
    if not server_secret:
        server_secret = zmq.curve_keypair()[1].decode()
    if not client_secret or _is_due(rotated_at, rotate_every, now):
        previous = [_public(client_secret)] if client_secret else allowed[:1]
        client_secret = zmq.curve_keypair()[1].decode()
        rotated_at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    else:
        previous = [key for key in allowed if key != _public(client_secret)][:1]
    return LayerKeys(
        server_public=_public(server_secret),
        server_secret=server_secret,
        client_secret=client_secret,
        allowed=(_public(client_secret), *previous),
        rotated_at=rotated_at,
    )


def due_at(keys: LayerKeys, rotate_every: float) -> datetime:
    """Return when the next rotation is due."""
    return _time(keys.rotated_at) + timedelta(seconds=rotate_every)


def _is_due(rotated_at: str, rotate_every: float, now: datetime) -> bool:
    return now >= _time(rotated_at) + timedelta(seconds=rotate_every)


def _time(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def _read(secret: Manifest | None, key: str) -> str:
    try:
        return b64decode(((secret or {}).get("data") or {}).get(key, "")).decode("ascii").strip()
    except ValueError:
        return ""  # somebody edited it


def _valid(secret: str) -> str:
    """Return a secret key, or nothing if it is none."""
    try:
        _public(secret)
    except (ValueError, zmq.ZMQError):
        return ""
    return secret


def _public(secret: str) -> str:
    return zmq.curve_public(secret.encode()).decode()
