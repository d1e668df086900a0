"""The specs that are valid, and the errors that name an invalid field."""

from typing import Any

import pytest
from pydantic import ValidationError

from channels_zmq_operator.models import LARGEST_SPEC, PLACEMENT, Limits, Owner, Spec, SpecError, parse, seconds, size


def test_a_large_spec_is_refused() -> None:
    """A large spec is refused, since the operator keeps the specs of all layers, and some fields accept anything."""
    parse({"spec": {"resources": {"x": "x" * (LARGEST_SPEC - 100)}}})
    with pytest.raises(SpecError, match=f"spec: longer than {LARGEST_SPEC} characters"):
        parse({"spec": {"resources": {"x": "x" * LARGEST_SPEC}}})


@pytest.mark.parametrize("resource", [{}, {"spec": None}, {"spec": {}}])
def test_an_empty_spec_is_a_working_layer(resource: dict[str, Any]) -> None:
    """An empty spec is a working layer, since every field has a default."""
    spec = parse(resource)
    assert spec == Spec()
    assert spec.forwarders == 2
    assert spec.security.curve == "Enabled"
    assert spec.resources["limits"] == {"memory": "512Mi"}


def test_names_outside_are_camel_case() -> None:
    """The fields of a resource have camel-case names, as everywhere in Kubernetes."""
    spec = parse(
        {"spec": {"layer": {"groupExpiry": 5, "channelCapacity": {"a.*": 2}}, "networkPolicy": {"enabled": False}}}
    )
    assert spec.layer.group_expiry == 5
    assert spec.layer.channel_capacity == {"a.*": 2}
    assert not spec.network_policy.enabled


@pytest.mark.parametrize(
    "spec, said",
    [
        ({"forwarders": 65}, "spec.forwarders: Input should be less than or equal to 64"),
        ({"unknown": 1}, "spec.unknown: Extra inputs are not permitted"),
        ({"layer": {"capcity": 1}}, "spec.layer.capcity: Extra inputs are not permitted"),
        ({"layer": {"capacity": 0}}, "spec.layer.capacity: Input should be greater than or equal to 1"),
        ({"layer": {"channelCapacity": {"a": 0}}}, "spec.layer.channelCapacity.a: Input should be greater"),
        ({"layer": {"maxMessageSize": "16MB"}}, "spec.layer.maxMessageSize: '16MB' is not a size such as 16Mi"),
        ({"layer": {"maxMessageSize": 0}}, "spec.layer.maxMessageSize: 0 is outside 1 to 2Gi"),
        ({"layer": {"maxMessageSize": "3Gi"}}, "spec.layer.maxMessageSize: '3Gi' is outside 1 to 2Gi"),
        ({"layer": {"maxMessageSize": None}}, "spec.layer.maxMessageSize: None is not a size"),
        ({"layer": {"maxMessageSize": True}}, "spec.layer.maxMessageSize: True is not a size"),
        ({"security": {"curve": "Perhaps"}}, "spec.security.curve: Input should be 'Enabled' or 'Disabled'"),
        ({"security": {"rotateEvery": "1d"}}, "spec.security.rotateEvery: '1d' is not a duration such as 720h"),
        ({"security": {"rotateEvery": "59m"}}, "spec.security.rotateEvery: '59m' is less than 1h"),
        ({"security": {"rotateEvery": 5}}, "spec.security.rotateEvery: "),
        (
            {"podTemplate": {"spec": {"tolerations": ["x"]}}},
            "spec.podTemplate.spec: tolerations must be a list of objects",
        ),
        (
            {"podTemplate": {"spec": {"tolerations": [{"key": {"a": "b"}}]}}},
            "spec.podTemplate.spec: key and effect of a toleration must be strings",
        ),
        ({"image": []}, "spec.image: "),
        ([], "spec: "),
        ("text", "spec: "),
    ],
)
def test_an_error_names_the_field(spec: Any, said: str) -> None:
    """An error begins with the path of the field, as users write it."""
    if spec == []:
        assert parse({"spec": spec}) == Spec()  # an empty list counts as an absent spec
        return
    with pytest.raises(SpecError) as caught:
        parse({"spec": spec})
    assert str(caught.value).startswith(said)


def test_every_wrong_field_is_named() -> None:
    """An error names every invalid field, not only the first."""
    with pytest.raises(SpecError, match=r"^spec\.forwarders: .*; spec\.layer\.expiry: .*; spec\.x: "):
        parse({"spec": {"forwarders": 0, "layer": {"expiry": 0}, "x": 1}})


@pytest.mark.parametrize(
    "text, expected",
    [("16Mi", 2**24), (5, 5), ("5", 5), ("1k", 1000), ("1Gi", 2**30), ("2M", 2_000_000), ("1Ki", 1024)],
)
def test_sizes(text: int | str, expected: int) -> None:
    """A size is parsed to its number of bytes, with decimal and binary suffixes."""
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "Mi", "1.5Mi", "-1", "1 Mi", "1mi", "1Ti", "0x1", "1Mi\n"])
def test_what_is_no_size(text: str) -> None:
    """A text that is not a size raises ValueError."""
    with pytest.raises(ValueError, match="is not a size"):
        size(text)


def test_durations() -> None:
    """A duration is parsed to seconds; an invalid one raises ValueError."""
    assert [seconds(text) for text in ("5s", "2m", "1h", "720h")] == [5, 120, 3600, 2_592_000]
    for text in ("", "h", "1", "1.5h", "1h30m", "-1h", "1H"):
        with pytest.raises(ValueError, match="is not a duration"):
            seconds(text)


def test_the_shortest_rotation_is_an_hour() -> None:
    """A rotation interval of one hour is accepted in every unit."""
    for text in ("1h", "60m", "3600s"):
        assert parse({"spec": {"security": {"rotateEvery": text}}}).security.rotate_every == text


def test_a_spec_does_not_change() -> None:
    """A parsed spec is frozen, so that it can be kept."""
    with pytest.raises(ValidationError):
        Spec().forwarders = 2  # type: ignore[misc]


def test_the_owner_is_the_resource_without_its_content() -> None:
    """An Owner identifies its resource, even one that was never in a cluster."""
    metadata = {"name": "chat", "namespace": "home", "uid": "u", "generation": 3}
    assert Owner.of({"metadata": metadata}) == Owner(name="chat", namespace="home", uid="u", generation=3)
    assert Owner.of({"metadata": metadata}).key == ("home", "chat")
    assert Owner.of({"metadata": {"name": "chat"}}) == Owner(name="chat", namespace="default", uid="", generation=0)


CHOSEN: dict[str, Any] = {
    "image": {"repository": "evil", "tag": "1", "digest": "sha256:0"},
    "podTemplate": {
        "metadata": {"labels": {"team.example/a": "b", "app": "theirs"}, "annotations": {"identity": "role"}},
        "spec": {"nodeSelector": {"a": "b"}, "serviceAccountName": "admin", "hostNetwork": True},
    },
}


def test_limits_name_every_field_that_is_not_allowed() -> None:
    """The limits' error names every forbidden field, with the value of the chart that would allow it."""
    with pytest.raises(SpecError) as caught:
        Limits(labels=("team.example/",)).check(parse({"spec": CHOSEN}))
    assert str(caught.value) == (
        "not allowed in this cluster: spec.image.repository (layers.imageOverrides); "
        "spec.image.tag (layers.imageOverrides); "
        "spec.image.digest (layers.imageOverrides); "
        "spec.podTemplate.metadata.labels.app (layers.allowedLabels); "
        "spec.podTemplate.metadata.annotations.identity (layers.allowedAnnotations); "
        "spec.podTemplate.spec.serviceAccountName (layers.podOverrides); "
        "spec.podTemplate.spec.hostNetwork (layers.podOverrides). "
        "The names in brackets are the values of the operator's chart that allow it"
    )


def test_limits_let_through_what_they_allow() -> None:
    """The limits accept labels and annotations with an allowed prefix, and every field that they do not restrict."""
    limits = Limits(image_overrides=True, labels=("team.example/", "app"), annotations=("id",), pod_overrides=True)
    limits.check(parse({"spec": CHOSEN}))
    rest = {"image": {"pullSecrets": ["a"]}, "podTemplate": {"spec": {key: [] for key in PLACEMENT}}}
    Limits().check(parse({"spec": rest}))
