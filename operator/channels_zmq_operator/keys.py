"""The CURVE keys of a layer: generated once, kept in the cluster's Secrets, and rotated with an overlap.

A rotation has two steps, because a mounted Secret reaches running pods only after a minute. First the forwarders' list
allows the next key, which no application has yet. `SETTLE` later the applications get it. The key before it stays
allowed until the next rotation, so that every pod has a whole period to load the new one. Both steps apply the
forwarders' Secret first: at every moment the forwarders allow the key that applications have.

`rotateNow` requests a rotation after a key has leaked. It has the same two steps, with a key that was never announced
before, and a third one: `SETTLE` after the second, all other keys are revoked.

ZeroMQ allows no overlap for the forwarders' own key: a new one cuts off all clients until their files are new. So a
single step renews the forwarders' key and the applications' key, and the list allows the new one alone.
"""

import struct
from base64 import b64decode
from datetime import UTC, datetime, timedelta

import zmq
from zmq.utils import z85

from channels_zmq_operator.naming import (
    ALLOWED_KEYS,
    ANNOUNCED_AT,
    ANNOUNCED_FOR,
    CLIENT_KEY_ENTRY,
    KEY_FILE,
    NEXT_KEY,
    REVOKE_AT,
    ROTATED_AT,
    ROTATED_FOR,
    Manifest,
    timestamp,
)
from channels_zmq_operator.render import LayerKeys

SETTLE = 180.0
"""Seconds from the announcement to the rotation: running pods had a changed Secret after 61 to 76 s."""


def next_keys(
    server: Manifest | None,
    client: Manifest | None,
    rotate_every: float,
    now: datetime,
    *,
    rotate_now: str = "",
    rotate_server_key: bool = False,
) -> LayerKeys:
    """Return the keys that a layer should have now: those of its Secrets, and new ones where they are missing or due.

    Args:
        server: The forwarders' Secret; None if it does not exist.
        client: The applications' Secret; None if it does not exist.
        rotate_every: Seconds between rotations.
        now: The current time, with a time zone.
        rotate_now: Requests a rotation at once if it differs from the text of the last rotation; empty for no request.
        rotate_server_key: Whether such a rotation also renews the forwarders' key.
    """
    server_secret = _valid(_read(server, KEY_FILE)) or _new_secret()
    present, upcoming = _valid(_read(client, CLIENT_KEY_ENTRY)), _valid(_read(server, NEXT_KEY))
    allowed = [line for line in _read(server, ALLOWED_KEYS).split() if _is_public(line)]
    rotated_at, announced_at = _annotation(client, ROTATED_AT), _annotation(server, ANNOUNCED_AT)
    announced_for, revoke_at = _annotation(server, ANNOUNCED_FOR), _annotation(server, REVOKE_AT)
    rotated_for = _annotation(client, ROTATED_FOR)
    is_asked = bool(rotate_now) and rotate_now != rotated_for
    if revoke_at and now >= _time(revoke_at):
        allowed, revoke_at = [], ""  # the third step: only the keys in `mine` stay allowed
    if is_asked and (rotate_server_key or not present):  # the single step: an overlap is impossible or useless
        server_secret = _new_secret() if rotate_server_key else server_secret
        present, upcoming, allowed, revoke_at, rotated_at = _new_secret(), "", [], "", timestamp(now)
    elif not present:  # no application can use a missing key: do not wait
        present, upcoming, rotated_at = upcoming or _new_secret(), "", timestamp(now)
    elif is_asked and (not upcoming or announced_for != rotate_now):  # an announced one may have leaked, too
        allowed = [key for key in allowed if not upcoming or key != _public(upcoming)]
        upcoming, announced_at, announced_for, revoke_at = _new_secret(), timestamp(now), rotate_now, ""
    elif upcoming and not announced_at:  # a user removed the time: the wait begins again
        announced_at = timestamp(now)
    elif upcoming and _is_due(announced_at, SETTLE, now):  # the second step
        allowed = [_public(present)]
        present, upcoming, rotated_at = upcoming, "", timestamp(now)
        revoke_at = timestamp(now + timedelta(seconds=SETTLE)) if is_asked else ""
    elif not upcoming and _is_due(rotated_at, rotate_every, now):  # the first step
        upcoming, announced_at, announced_for = _new_secret(), timestamp(now), ""
    mine = [_public(secret) for secret in (present, upcoming) if secret]
    return LayerKeys(
        server_public=_public(server_secret),
        server_secret=server_secret,
        client_secret=present,
        allowed=(*mine, *[key for key in allowed if key not in mine][:1]),
        rotated_at=rotated_at,
        next_secret=upcoming,
        announced_at=announced_at if upcoming else "",
        rotated_for=rotated_for if is_asked and upcoming else rotate_now,
        announced_for=announced_for if upcoming else "",
        revoke_at=revoke_at,
    )


def rotated_at(client: Manifest | None) -> str:
    """Return when the applications got the key of their Secret; an empty text if that is unknown."""
    return _annotation(client, ROTATED_AT)


def due_at(keys: LayerKeys, rotate_every: float) -> datetime:
    """Return when the next step is due."""
    if keys.next_secret:
        due = _time(keys.announced_at) + timedelta(seconds=SETTLE)
    else:
        due = _time(keys.rotated_at) + timedelta(seconds=rotate_every)
    return min(due, _time(keys.revoke_at)) if keys.revoke_at else due


def _new_secret() -> str:
    return zmq.curve_keypair()[1].decode()


def _is_due(rotated_at: str, rotate_every: float, now: datetime) -> bool:
    return now >= _time(rotated_at) + timedelta(seconds=rotate_every)


def _time(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)  # a user edited it: due


def _annotation(secret: Manifest | None, name: str) -> str:
    return str(((secret or {}).get("metadata", {}).get("annotations") or {}).get(name, ""))


def _read(secret: Manifest | None, key: str) -> str:
    try:
        return b64decode(((secret or {}).get("data") or {}).get(key, "")).decode("ascii").strip()
    except ValueError:
        return ""  # a user edited it


def _valid(secret: str) -> str:
    """Return a secret key, or an empty text if it is invalid."""
    try:
        _public(secret)
    except (ValueError, zmq.ZMQError):
        return ""
    return secret


def _public(secret: str) -> str:
    return zmq.curve_public(secret.encode()).decode()


def _is_public(text: str) -> bool:
    """Return whether a text can be a public key: 32 bytes in Z85."""
    try:
        return len(z85.decode(text.encode())) == 32
    except (ValueError, LookupError, struct.error):
        return False
