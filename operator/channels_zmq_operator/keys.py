"""The CURVE keys of a layer: made once, kept in the cluster's Secrets, and rotated with an overlap.

A rotation has two steps, because a mounted Secret reaches running pods only after a minute. First the forwarders' list
allows the next key, which no application has yet. `SETTLE` later applications get it, and the key before it stays
allowed until the next rotation, so that every pod has a whole period to take up the new one. Both steps write the
forwarders' Secret first: the key that applications have is allowed at every moment.

`rotateNow` requests a rotation after a key was lost. It has the same two steps, with a key never published before, and
a third one: `SETTLE` after the second, all other keys are revoked. The forwarders' own key has no overlap in ZeroMQ.
Renewing it cuts off all clients until their files are new. So a single step writes the forwarders' key, the
applications' key, and a list with that one alone.
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
"""Seconds from the announcement to the rotation: a mounted Secret was new in running pods after 61 to 76 s."""


def next_keys(
    server: Manifest | None,
    client: Manifest | None,
    rotate_every: float,
    now: datetime,
    *,
    rotate_now: str = "",
    rotate_server_key: bool = False,
) -> LayerKeys:
    """Return the keys that a layer should have now: those of its Secrets, with what is missing or due made anew.

    Args:
        server: The forwarders' Secret, if there is one.
        client: The applications' Secret, if there is one.
        rotate_every: Seconds between rotations.
        now: Aware time.
        rotate_now: Rotate without waiting for the time if this is not what was rotated for last; empty for no.
        rotate_server_key: Whether such a rotation renews the forwarders' key as well.
    """
    server_secret = _valid(_read(server, KEY_FILE)) or _new_secret()
    present, upcoming = _valid(_read(client, CLIENT_KEY_ENTRY)), _valid(_read(server, NEXT_KEY))
    allowed = [line for line in _read(server, ALLOWED_KEYS).split() if _is_public(line)]
    rotated_at, announced_at = _annotation(client, ROTATED_AT), _annotation(server, ANNOUNCED_AT)
    announced_for, revoke_at = _annotation(server, ANNOUNCED_FOR), _annotation(server, REVOKE_AT)
    rotated_for = _annotation(client, ROTATED_FOR)
    is_asked = bool(rotate_now) and rotate_now != rotated_for
    if revoke_at and now >= _time(revoke_at):
        allowed, revoke_at = [], ""
    if is_asked and (rotate_server_key or not present):
        server_secret = _new_secret() if rotate_server_key else server_secret
        present, upcoming, allowed, revoke_at, rotated_at = _new_secret(), "", [], "", timestamp(now)
    elif not present:  # a lost key is in use nowhere: do not wait
        present, upcoming, rotated_at = upcoming or _new_secret(), "", timestamp(now)
    elif is_asked and (not upcoming or announced_for != rotate_now):  # one that is announced may be lost as well
        allowed = [key for key in allowed if not upcoming or key != _public(upcoming)]
        upcoming, announced_at, announced_for, revoke_at = _new_secret(), timestamp(now), rotate_now, ""
    elif upcoming and not announced_at:
        announced_at = timestamp(now)
    elif upcoming and _is_due(announced_at, SETTLE, now):
        allowed = [_public(present)]
        present, upcoming, rotated_at = upcoming, "", timestamp(now)
        revoke_at = timestamp(now + timedelta(seconds=SETTLE)) if is_asked else ""
    elif not upcoming and _is_due(rotated_at, rotate_every, now):
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
    """Return when the applications got the key of their Secret; no text if that is not known."""
    return _annotation(client, ROTATED_AT)


def due_at(keys: LayerKeys, rotate_every: float) -> datetime:
    """Return when something is to be done next."""
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
    """Return a secret key, or nothing if it is not one."""
    try:
        _public(secret)
    except (ValueError, zmq.ZMQError):
        return ""
    return secret


def _public(secret: str) -> str:
    return zmq.curve_public(secret.encode()).decode()


def _is_public(text: str) -> bool:
    """Return whether this can be a public key: 32 bytes in Z85."""
    try:
        return len(z85.decode(text.encode())) == 32
    except (ValueError, LookupError, struct.error):
        return False
