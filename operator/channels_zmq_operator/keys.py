"""The CURVE keys of a layer: made once, kept in the cluster's Secrets, and rotated with an overlap.

A rotation has two steps. First the forwarders' list gets the key that applications will have next; a mounted Secret
reaches a running pod after 61 to 76 s, so the applications' Secret gets that key two minutes later. The key before it
stays allowed until the next rotation, so that every pod has a whole period to take up the new one. The forwarders' own
key does not change: it has no overlap in ZeroMQ.
"""

from base64 import b64decode
from datetime import UTC, datetime, timedelta

import zmq

from channels_zmq_operator.models import GROUP
from channels_zmq_operator.render import ALLOWED_KEYS, ENV, KEY_FILE, NEXT_KEY, LayerKeys, Manifest

ROTATED_AT = f"{GROUP}/rotated-at"
"""On the applications' Secret: since when they have their key."""
ROTATION_BEGAN = f"{GROUP}/rotation-began"
"""On the forwarders' Secret: since when their list has the next key."""
SPREAD = 120.0
"""Seconds until every forwarder has read its list again."""


def next_keys(server: Manifest | None, client: Manifest | None, rotate_every: float, now: datetime) -> LayerKeys:
    """Return the keys that a layer should have now: those of its Secrets, with what is missing or due made anew.

    Args:
        server: The forwarders' Secret, if there is one.
        client: The applications' Secret, if there is one.
        rotate_every: Seconds between rotations.
        now: Aware time.
    """
    server_secret = _valid(_read(server, KEY_FILE)) or _new()
    client_secret, following = _valid(_read(client, f"{ENV}CURVE_SECRET_KEY")), _valid(_read(server, NEXT_KEY))
    allowed = [line for line in _read(server, ALLOWED_KEYS).split() if len(line) == 40]
    rotated_at, began = _annotation(client, ROTATED_AT), _annotation(server, ROTATION_BEGAN)
    if not client_secret or (following and _is_over(began, SPREAD, now)):
        allowed = [_public(client_secret)] if client_secret else allowed[:1]
        client_secret, following = following or _new(), ""
        rotated_at = _text(now)
    elif not following and _is_over(rotated_at, rotate_every, now):
        following, began = _new(), _text(now)
    current = [_public(key) for key in (client_secret, following) if key]
    return LayerKeys(
        server_public=_public(server_secret),
        server_secret=server_secret,
        client_secret=client_secret,
        next_client_secret=following,
        allowed=(*current, *[key for key in allowed if key not in current][:1]),
        rotated_at=rotated_at,
        rotation_began=began if following else "",
    )


def due_at(keys: LayerKeys, rotate_every: float) -> datetime:
    """Return when the next step of a rotation is due."""
    if keys.next_client_secret:
        return _time(keys.rotation_began) + timedelta(seconds=SPREAD)
    return _time(keys.rotated_at) + timedelta(seconds=rotate_every)


def _is_over(since: str, duration: float, now: datetime) -> bool:
    return now >= _time(since) + timedelta(seconds=duration)


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def _annotation(secret: Manifest | None, name: str) -> str:
    return str(((secret or {}).get("metadata", {}).get("annotations") or {}).get(name, ""))


def _new() -> str:
    return zmq.curve_keypair()[1].decode()


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
