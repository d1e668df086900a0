"""The keys of a layer: clients with the mounted key are never refused, whatever fails and when."""

import itertools
from base64 import b64decode, b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from channels_zmq_operator.keys import SETTLE, due_at, next_keys
from channels_zmq_operator.models import Owner, Spec
from channels_zmq_operator.naming import ANNOUNCED_AT, CLIENT_KEY_ENTRY, KEY_FILE, NEXT_KEY, ROTATED_AT, Manifest
from channels_zmq_operator.render import Choices, LayerKeys, render

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = 3600.0
OWNER = Owner(name="chat", namespace="home", uid="u")
Secrets = tuple[Manifest | None, Manifest | None]
"""The Secret of the forwarders and that of the applications."""


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def secrets(keys: LayerKeys) -> tuple[Manifest, Manifest]:
    server, client, *_ = render(OWNER, Spec(), keys, Choices("image"))
    assert [server["metadata"]["name"], client["metadata"]["name"]] == ["chat-forwarder", "chat-client"]
    return server, client


def first() -> LayerKeys:
    return next_keys(None, None, HOUR, START)


def read(secret: Manifest | None, key: str) -> str:
    assert secret is not None
    return b64decode(secret["data"][key]).decode()


def changed(secret: Manifest, key: str, value: str | None) -> Manifest:
    data = {**secret["data"], key: b64encode(value.encode()).decode()} if value is not None else {**secret["data"]}
    if value is None:
        del data[key]
    return {**secret, "data": data}


def public(secret: str) -> str:
    return zmq.curve_public(secret.encode()).decode()


def test_new_keys_fit_each_other() -> None:
    """The public key belongs to the forwarders' secret key, and only the applications' key is allowed."""
    keys = first()
    assert keys.server_public == public(keys.server_secret)
    assert keys.allowed == (public(keys.client_secret),)
    assert keys.client_secret != keys.server_secret
    assert keys.rotated_at == "2026-01-01T00:00:00Z"
    assert (keys.next_secret, keys.announced_at) == ("", "")
    assert first().server_secret != keys.server_secret


def test_nothing_changes_until_a_rotation_is_due() -> None:
    """Keys that are read back from their Secrets are the same until a rotation is due."""
    keys = first()
    assert next_keys(*secrets(keys), HOUR, after(HOUR - 1)) == keys
    assert due_at(keys, HOUR) == after(HOUR)


def test_a_rotation_is_announced_before_it_happens() -> None:
    """The next key is allowed long before any application has it, and the previous one stays allowed for a period."""
    keys = first()
    announced = next_keys(*secrets(keys), HOUR, after(HOUR))
    assert announced.client_secret == keys.client_secret
    assert announced.rotated_at == keys.rotated_at
    assert announced.allowed == (public(keys.client_secret), public(announced.next_secret))
    assert due_at(announced, HOUR) == after(HOUR + SETTLE)
    assert next_keys(*secrets(announced), HOUR, after(HOUR + SETTLE - 1)) == announced
    rotated = next_keys(*secrets(announced), HOUR, after(HOUR + SETTLE))
    assert rotated.client_secret == announced.next_secret
    assert rotated.allowed == (public(announced.next_secret), public(keys.client_secret))
    assert (rotated.next_secret, rotated.announced_at) == ("", "")
    assert due_at(rotated, HOUR) == after(2 * HOUR + SETTLE)
    assert rotated.server_secret == keys.server_secret
    again = next_keys(*secrets(rotated), HOUR, after(2 * HOUR + SETTLE))
    assert again.allowed == (
        public(rotated.client_secret),
        public(again.next_secret),
        public(keys.client_secret),
    )


def written(before: Secrets, keys: LayerKeys) -> Iterator[Secrets]:
    """Yield the Secrets of the cluster while new ones are written, one after the other in the order of rendering."""
    server, client = secrets(keys)
    yield before
    yield server, before[1]
    yield server, client


@pytest.mark.parametrize("late", [0, 20, 100, 10 * HOUR])
@pytest.mark.parametrize("dies_at", [None, 0, 1])
def test_the_present_key_and_the_one_before_are_allowed_at_every_moment(late: float, dies_at: int | None) -> None:
    """Over fifty rotations, each key that an application had within the last period is in the forwarder's list.

    That holds for late reconciliations, and for operators that die between the two Secrets. A forwarder has its list up
    to 80 s late, and an application its key at once or never.
    """
    now = 0.0
    held: Secrets = (None, None)
    history: list[tuple[float, list[str], str]] = []  # (time, keys allowed by forwarders, key of applications)
    for step in range(150):
        keys = next_keys(*held, HOUR, after(now))
        moments = list(written(held, keys))
        if dies_at is not None and step % 3 == 2:
            moments = moments[: dies_at + 1]
        for server, client in moments:
            if client is not None:
                history.append((now, read(server, "allowed-keys").split(), read(client, CLIENT_KEY_ENTRY)))
        held = moments[-1]
        due = (due_at(keys, HOUR) - START).total_seconds()
        now = max(now, due) + late
    assert len({secret for _, _, secret in history}) > 20
    replaced: dict[str, float] = {}
    for (_, _, old), (when, _, new) in itertools.pairwise(history):
        if old != new:
            replaced[old] = when
    for index, (when, allowed, secret) in enumerate(history):
        assert len(allowed) <= 3
        stale = next((lists for then, lists, _ in reversed(history[:index]) if then <= when - 80), allowed)
        for lists in (allowed, stale):
            assert public(secret) in lists
        for old, since in replaced.items():
            if since <= when < since + HOUR:
                assert public(old) in allowed


def asked(
    before: Secrets, seconds: float, text: str = "leak", *, every: float = 1000 * HOUR, server: bool = False
) -> LayerKeys:
    """Compute the next keys from Secrets while a rotation is requested."""
    return next_keys(*before, every, after(seconds), rotate_now=text, rotate_server_key=server)


def test_a_rotation_that_is_asked_for_revokes_what_was_before() -> None:
    """A requested rotation revokes the former key once applications have the new one.

    The list contains the new key long before that, and the former one long after.
    """
    keys = first()
    announced = asked(secrets(keys), 10)
    assert announced.client_secret == keys.client_secret
    assert announced.allowed == (public(keys.client_secret), public(announced.next_secret))
    assert due_at(announced, HOUR) == after(10 + SETTLE)
    assert asked(secrets(announced), 9 + SETTLE) == announced
    out = asked(secrets(announced), 10 + SETTLE)
    assert out.client_secret == announced.next_secret
    assert out.allowed == (public(out.client_secret), public(keys.client_secret))
    assert due_at(out, HOUR) == after(10 + 2 * SETTLE)
    assert asked(secrets(out), 9 + 2 * SETTLE) == out
    done = asked(secrets(out), 10 + 2 * SETTLE)
    assert done.allowed == (public(out.client_secret),)
    assert done.client_secret == out.client_secret
    assert done.server_secret == keys.server_secret
    assert (done.rotated_for, done.announced_for, done.revoke_at) == ("leak", "", "")
    assert due_at(done, HOUR) == after(10 + SETTLE + HOUR)
    assert asked(secrets(done), 11 + 2 * SETTLE) == done


def test_a_rotation_is_asked_for_by_a_new_text() -> None:
    """A rotation is requested by a new text, not by the text of a new layer, the same text again or an empty one."""
    keys = asked((None, None), 0, "a")
    assert keys.rotated_for == "a"
    assert asked(secrets(keys), 1, "a") == keys
    without = asked(secrets(keys), 1, "")
    assert (without.rotated_for, without.next_secret) == ("", "")
    assert asked(secrets(without), 2, "a").next_secret
    assert asked(secrets(keys), 2, "b").announced_for == "b"


def test_a_key_that_was_announced_may_be_lost_as_well() -> None:
    """A requested rotation replaces a key that was only announced, and removes it from the list.

    A second request does the same.
    """
    keys = first()
    periodic = next_keys(*secrets(keys), HOUR, after(HOUR))
    first_asked = asked(secrets(periodic), HOUR + 1)
    second_asked = asked(secrets(first_asked), HOUR + 2, "again")
    for before, found in ((periodic, first_asked), (first_asked, second_asked)):
        assert found.next_secret != before.next_secret
        assert found.allowed == (public(keys.client_secret), public(found.next_secret))


def test_with_the_servers_key_everything_is_new_at_once() -> None:
    """A new server key replaces the client keys at once too, and only the new client key is allowed.

    An application with an old file cannot connect to the new server anyway, and one with the new file has both keys.
    """
    keys = first()
    for before in (keys, next_keys(*secrets(keys), HOUR, after(HOUR)), asked(secrets(keys), 1)):
        found = asked(secrets(before), 2 * HOUR, "all", server=True)
        assert found.server_secret != keys.server_secret
        assert found.server_public == public(found.server_secret)
        assert found.client_secret not in (before.client_secret, before.next_secret)
        assert found.allowed == (public(found.client_secret),)
        assert (found.rotated_for, found.next_secret, found.revoke_at) == ("all", "", "")
        assert asked(secrets(found), 2 * HOUR + 1, "all", server=True) == found


@pytest.mark.parametrize("late", [0, 20, 100])
@pytest.mark.parametrize("dies", list(itertools.product([None, 0, 1], repeat=3)))
def test_a_rotation_that_is_asked_for_refuses_nobody_who_reads_his_file(
    late: float, dies: tuple[int | None, ...]
) -> None:
    """A requested rotation refuses no application that reads its file again, and in the end one key is allowed.

    That holds whenever the operator dies between the two Secrets, and if its next reconciliation is late. Forwarders
    have their list up to 80 s late, and applications their key.
    """
    held: Secrets = secrets(first())
    now = 100.0
    lost = public(read(held[1], CLIENT_KEY_ENTRY))
    history = [(0.0, *held)]
    for step in range(12):
        keys = asked(held, now)
        moments = list(written(held, keys))[1:]
        if step < len(dies) and (last := dies[step]) is not None:
            moments = moments[:last]
        history += [(now, server, client) for server, client in moments]
        held = moments[-1] if moments else held
        due = (due_at(asked(held, now), 1000 * HOUR) - START).total_seconds()
        now = (now + 1 if due <= now or due > 100 * HOUR else due) + late
    assert read(held[0], "allowed-keys").split() == [public(read(held[1], CLIENT_KEY_ENTRY))]
    assert lost not in read(held[0], "allowed-keys")
    for index, (when, server, client) in enumerate(history):
        lists = [server, *(before for then, before, _ in history[:index] if then > when - 80)]
        lists += [next((before for then, before, _ in reversed(history[:index]) if then <= when - 80), server)]
        files = [client, *(before for then, _, before in history[:index] if then > when - 80)]
        for allowed, file in itertools.product(lists, files):
            assert public(read(file, CLIENT_KEY_ENTRY)) in read(allowed, "allowed-keys").split()


def test_a_lost_clients_key_is_replaced_by_the_announced_one() -> None:
    """A lost client key is replaced by the announced one, which is in the list already, or else by a new one.

    Running applications stay allowed.
    """
    keys = first()
    announced = next_keys(*secrets(keys), HOUR, after(HOUR))
    server, _ = secrets(announced)
    found = next_keys(server, None, HOUR, after(HOUR + 1))
    assert found.client_secret == announced.next_secret
    assert found.allowed == (public(announced.next_secret), public(keys.client_secret))
    server, _ = secrets(keys)
    found = next_keys(server, None, HOUR, after(1))
    assert found.allowed == (public(found.client_secret), public(keys.client_secret))
    assert found.server_secret == keys.server_secret


def test_a_lost_forwarders_key_is_made_anew_and_applications_keep_theirs() -> None:
    """A lost key of the forwarders cannot be restored, so it is created anew; applications keep their key."""
    keys = first()
    found = next_keys(None, secrets(keys)[1], HOUR, after(1))
    assert found.client_secret == keys.client_secret
    assert found.allowed == keys.allowed
    assert found.server_public == public(found.server_secret) != keys.server_public


@pytest.mark.parametrize("value", ["", "short", "?" * 40, "ü" * 20, "\x00" * 40, "a" * 41, "#" * 40])
def test_what_was_tampered_with_is_made_anew(value: str) -> None:
    """An invalid entry is replaced by itself; the others stay, and all keys fit together again."""
    keys = next_keys(*secrets(first()), HOUR, after(HOUR))
    server, client = secrets(keys)
    for found in (
        next_keys(changed(server, KEY_FILE, value), client, HOUR, after(HOUR)),
        next_keys(server, changed(client, CLIENT_KEY_ENTRY, value), HOUR, after(HOUR)),
        next_keys(changed(server, "allowed-keys", value), client, HOUR, after(HOUR)),
        next_keys(changed(server, NEXT_KEY, value), client, HOUR, after(HOUR)),
    ):
        assert found.server_public == public(found.server_secret)
        assert public(found.client_secret) in found.allowed
        assert not found.next_secret or public(found.next_secret) in found.allowed
        assert all(len(key) == 40 for key in found.allowed)
        assert found.server_secret == keys.server_secret or found.client_secret == keys.client_secret


@pytest.mark.parametrize("when", ["", "yesterday", "2026-13-01T00:00:00Z"])
def test_times_that_were_tampered_with_are_no_reason_to_hurry(when: str) -> None:
    """A rotation without a valid time is due and is announced; an announcement without a time starts now."""
    server, client = secrets(first())
    client["metadata"]["annotations"][ROTATED_AT] = when
    announced = next_keys(server, client, HOUR, after(1))
    assert announced.announced_at == "2026-01-01T00:00:01Z"
    server, client = secrets(announced)
    del server["metadata"]["annotations"][ANNOUNCED_AT]
    assert next_keys(server, client, HOUR, after(2)).announced_at == "2026-01-01T00:00:02Z"


junk = st.none() | st.dictionaries(
    st.sampled_from(["data", "metadata"]),
    st.none()
    | st.dictionaries(
        st.sampled_from([KEY_FILE, CLIENT_KEY_ENTRY, NEXT_KEY, "allowed-keys"]), st.text(max_size=60), max_size=3
    ),
)


@given(junk, junk)
def test_any_secrets_give_keys(server: Any, client: Any) -> None:
    """Secrets of any content result in keys, which are the same when they are read back."""
    if server and server.get("metadata") is None:
        server.pop("metadata", None)
    if client and client.get("metadata") is None:
        client.pop("metadata", None)
    keys = next_keys(server, client, HOUR, START)
    assert next_keys(*secrets(keys), HOUR, START) == keys


def test_the_next_key_is_mounted_nowhere() -> None:
    """The next key is only in the forwarders' Secret, and is mounted into neither forwarders nor applications."""
    announced = next_keys(*secrets(first()), HOUR, after(HOUR))
    for manifest in render(OWNER, Spec(), announced, Choices("image")):
        if manifest["metadata"]["name"] != "chat-forwarder" or manifest["kind"] != "Secret":
            assert b64encode(announced.next_secret.encode()).decode() not in str(manifest)
            assert announced.next_secret not in str(manifest)
        if manifest["kind"] == "Deployment":
            (volume,) = manifest["spec"]["template"]["spec"]["volumes"]
            assert [item["key"] for item in volume["secret"]["items"]] == [KEY_FILE, "allowed-keys"]


def test_keys_are_not_shown() -> None:
    """The repr of the keys contains no secret key, so that no log line discloses one."""
    announced = next_keys(*secrets(first()), HOUR, after(HOUR))
    for secret in (announced.server_secret, announced.client_secret, announced.next_secret):
        assert secret not in repr(announced)
