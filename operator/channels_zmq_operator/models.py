"""The fields of a `ZmqChannelLayer`: the single source of its schema, its defaults and its documentation."""

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel

GROUP = "channels-zmq.io"
VERSION = "v1alpha1"
KIND = "ZmqChannelLayer"
PLURAL = "zmqchannellayers"
API_VERSION = f"{GROUP}/{VERSION}"
LONGEST_NAME = 47
"""Maximum characters of a layer's name: the names of its children add up to 16, and Kubernetes allows 63."""

_UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}
_SIZE = re.compile(r"([0-9]+)(Ki|Mi|Gi|k|M|G|)")
_DURATION = re.compile(r"([0-9]+)(s|m|h)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}
LARGEST_SPEC = 2**16
"""Maximum characters of a spec as JSON: the operator keeps those of all layers, and some fields are free-form."""
PLACEMENT = (
    "affinity",
    "nodeSelector",
    "priorityClassName",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
)
"""Fields of a pod that decide where and for how long it runs, but not what it may do there."""
FREE_FORM: dict[str, Any] = {"x-kubernetes-preserve-unknown-fields": True}
INT64: dict[str, Any] = {"format": "int64"}
STRING_MAP: dict[str, Any] = {"additionalProperties": {"type": "string"}}


class SpecError(ValueError):
    """An invalid resource; the message names the field."""


def size(value: int | str) -> int:
    """Return the bytes of a quantity such as `16Mi`.

    Raises:
        ValueError: If the quantity is invalid.
    """
    match = _SIZE.fullmatch(str(value))
    if match is None:
        raise ValueError(f"{value!r} is not a size such as 16Mi")
    return int(match[1]) * _UNITS[match[2]]


def seconds(value: str) -> int:
    """Return the seconds of a duration such as `720h`.

    Raises:
        ValueError: If the duration is invalid.
    """
    match = _DURATION.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is not a duration such as 720h")
    return int(match[1]) * _SECONDS[match[2]]


def _checked_size(value: Any) -> Any:
    if not 1 <= size(value) <= 2**31:
        raise ValueError(f"{value!r} is outside 1 to 2Gi")
    return value


def _checked_duration(value: Any) -> Any:
    if isinstance(value, str) and seconds(value) < 3600:
        raise ValueError(f"{value!r} is less than 1h")
    return value


Size = Annotated[
    int | str,
    BeforeValidator(_checked_size),
    Field(json_schema_extra={"x-kubernetes-int-or-string": True}),
]
Duration = Annotated[
    str,
    BeforeValidator(_checked_duration),
    Field(max_length=10, json_schema_extra={"pattern": "^[0-9]+(s|m|h)$"}),
]


class Part(BaseModel):
    """A part of the resource: its fields are camelCase in a manifest, and unknown fields are invalid."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Layer(Part):
    """Settings of the applications' layers, as in their CONFIG."""

    capacity: int = Field(
        100,
        ge=1,
        le=10**6,
        description="Maximum number of messages that wait on one channel; a full channel refuses further messages.",
    )
    expiry: int = Field(60, ge=1, le=4_000_000, description="Seconds after which a waiting message expires.")
    group_expiry: int = Field(
        86400,
        ge=1,
        le=10**10,
        description="Seconds without `group_add` or `receive` after which a channel is removed from its groups.",
    )
    channel_capacity: dict[str, Annotated[int, Field(ge=1, le=10**6)]] = Field(
        default_factory=dict, max_length=100, description="Capacities by glob of channel names, e.g. jobs.*: 10000."
    )
    max_message_size: Size = Field(
        "1Mi", description="Maximum size of a message, e.g. 16Mi; also the forwarders' limit."
    )


class Security(Part):
    """Encryption, authentication and keys."""

    curve: Literal["Enabled", "Disabled"] = Field(
        "Enabled", description="CURVE encryption and authentication on both ports; the operator generates the keys."
    )
    encryption: Literal["Enabled", "Disabled"] = Field(
        "Disabled",
        description="Encrypt payloads from application to application with the keys in the Secret <layer>-encryption.",
    )
    rotate_every: Duration = Field(
        "720h",
        description="Interval after which the applications get a new key. The previous key stays valid until the next "
        "rotation.",
    )
    rotate_now: str = Field(
        "",
        max_length=100,
        description="Any text. Changing it gives the applications a new key; all earlier keys are revoked minutes "
        "later.",
    )
    rotate_server_key: bool = Field(
        False,
        description="Whether rotateNow also replaces the forwarders' key and revokes keys at once: clients may wait up "
        "to 80 s.",
    )


class Image(Part):
    """The forwarder's image, where it differs from the operator's default."""

    repository: str = Field(
        "", max_length=300, description="Registry and name of the image; empty for the operator's default."
    )
    tag: str = Field("", max_length=128, description="Tag of the image; empty for the operator's default.")
    digest: str = Field("", max_length=100, description="Digest such as sha256:...; it takes precedence over the tag.")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="When the image is pulled."
    )
    pull_secrets: list[Annotated[str, Field(max_length=253)]] = Field(
        default_factory=list, max_length=10, description="Names of Secrets with credentials for the registry."
    )


class Forwarder(Part):
    """Settings of the forwarders, which get only those that differ from their defaults."""

    pub_high_water_mark: int = Field(
        100_000,
        ge=1,
        le=2**31 - 1,
        description="Maximum number of frames buffered for each subscriber; further ones are dropped.",
    )
    subscriber_bytes: Size = Field(
        "64Mi", description="Bytes by which a subscriber may be behind; beyond that its connection is ended."
    )
    topic_bytes: Size = Field("32Mi", description="Maximum total bytes of the names of all groups with members.")
    history_bytes: Size = Field(
        "16Mi",
        description="Memory of each forwarder for the group and direct messages of the last 20 seconds, which it "
        "replays to clients that have missed them; at most a sixteenth of its memory limit.",
    )
    queue_bytes: Size = Field("256Mi", description="Maximum memory of all queues of normal channels in each forwarder.")
    queue_names: int = Field(
        100_000, ge=1, le=2**31 - 1, description="Maximum number of queues of normal channels in each forwarder."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Minimum level of log lines.")


class Clients(Part):
    """Settings of the applications' connections to the forwarders, as in their CONFIG."""

    prefetch: int = Field(
        4, ge=0, le=1000, description="Messages of a normal channel that a process fetches ahead of its readers."
    )
    outbox_capacity: int = Field(
        10_000, ge=0, le=10**9, description="Maximum number of messages held while no forwarder accepts them."
    )
    outbox_bytes: Size = Field("64Mi", description="Maximum total bytes of held and of unacknowledged messages.")
    connect_timeout: int = Field(
        5, ge=1, le=3600, description="Seconds that a call waits for an answer of a forwarder."
    )
    linger: int = Field(
        1, ge=0, le=60, description="Maximum seconds that an exiting process spends on delivering sent messages."
    )
    on_disconnect: str = Field(
        "",
        max_length=100,
        description="Type of the message that every consumer gets when all forwarders are unreachable; empty for no "
        "message.",
    )
    on_reconnect: str = Field(
        "",
        max_length=100,
        description="Type of the message that every consumer gets when a forwarder is reachable again; empty for no "
        "message.",
    )


class PodMetadata(Part):
    """Metadata of the forwarders' pods."""

    labels: dict[str, str] = Field(default_factory=dict, description="Labels in addition to the operator's.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations in addition to the operator's.")


class PodTemplate(Part):
    """Additions to the forwarders' pods."""

    metadata: PodMetadata = Field(default_factory=PodMetadata, description="Labels and annotations.")
    spec: dict[str, Any] = Field(
        default_factory=dict,
        json_schema_extra=FREE_FORM,
        description="As the spec of a pod; fields that the operator sets take precedence. The container's name is "
        "forwarder.",
    )

    @field_validator("spec")
    @classmethod
    def _check_tolerations(cls, value: dict[str, Any]) -> dict[str, Any]:
        tolerations = value.get("tolerations", [])
        if not isinstance(tolerations, list) or not all(isinstance(one, dict) for one in tolerations):
            raise ValueError("tolerations must be a list of objects")
        if not all(isinstance(one.get(name, ""), str) for one in tolerations for name in ("key", "effect")):
            raise ValueError("key and effect of a toleration must be strings")
        return value


class NetworkPolicy(Part):
    """The network policy of the forwarders."""

    enabled: bool = Field(True, description="Admit only pods of the namespace with the label channels-zmq.io/layer.")
    metrics_from: list[dict[str, Any]] = Field(
        default_factory=list,
        max_length=50,
        description="Peers that may read the forwarders' metrics, as `from` of a NetworkPolicy; empty for all.",
    )


class Monitoring(Part):
    """Collection of the forwarders' metrics."""

    service_monitor: Literal["Auto", "Disabled"] = Field(
        "Auto", description="Create a ServiceMonitor if the cluster has that kind."
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels of the ServiceMonitor, in addition to the operator's."
    )
    interval: str = Field(
        "",
        max_length=10,
        pattern="^([0-9]+(ms|s|m|h))?$",
        description="Scrape interval, such as 30s; empty for the operator's default.",
    )


class Spec(Part):
    """What a layer should be. Every field has a default: an empty spec is a working layer."""

    forwarders: int = Field(
        2,
        ge=1,
        le=64,
        description="Number of forwarders, all equal. With two or more, the failure of one loses no group messages.",
    )
    layer: Layer = Field(default_factory=Layer, description="Settings of the applications' layers, as in their CONFIG.")
    security: Security = Field(default_factory=Security, description="Encryption, authentication and keys.")
    image: Image = Field(default_factory=Image, description="The forwarder's image.")
    resources: dict[str, Any] = Field(
        default_factory=lambda: {
            "requests": {"cpu": "50m", "memory": "64Mi"},
            "limits": {"memory": "512Mi"},
        },
        json_schema_extra=FREE_FORM,
        description="Requests and limits of the forwarder's container, as in a pod.",
    )
    forwarder: Forwarder = Field(default_factory=Forwarder, description="Settings of the forwarders.")
    clients: Clients = Field(
        default_factory=Clients,
        description="Settings of the applications' connections to the forwarders, as in their CONFIG.",
    )
    pod_template: PodTemplate = Field(
        default_factory=PodTemplate,
        description="Additions to the forwarders' pods, as the pod template of a Deployment.",
    )
    paused: bool = Field(False, description="Change nothing, even after an upgrade of the operator.")
    network_policy: NetworkPolicy = Field(
        default_factory=NetworkPolicy, description="Network policy of the forwarders."
    )
    monitoring: Monitoring = Field(default_factory=Monitoring, description="Collection of the forwarders' metrics.")

    @property
    def told_to_applications(self) -> dict[str, Any]:
        """The settings that applications read at their start, without defaults: new fields do not change the digest."""
        security = self.security.model_dump(include={"curve", "encryption"}, exclude_defaults=True)
        parts = {"layer": self.layer, "clients": self.clients}
        return {"security": security} | {name: part.model_dump(exclude_defaults=True) for name, part in parts.items()}


class Condition(Part):
    """One aspect of the state, in the shape that Kubernetes has for it."""

    type: str = Field(description="Accepted, Ready, Progressing, Degraded, Stalled or AppsOutdated.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether the condition holds.")
    reason: str = Field(description="Reason in one word.")
    message: str = Field(description="Reason as text.")
    observed_generation: int = Field(
        0, json_schema_extra=INT64, description="Generation of the resource that the condition describes."
    )
    last_transition_time: str = Field(
        json_schema_extra={"format": "date-time"}, description="When the condition last changed."
    )


class Binding(Part):
    """Secret with the connection settings for other tools (servicebinding.io)."""

    name: str = Field(description="Name of the Secret, in the layer's namespace.")


class AppSettings(Part):
    """Settings that pods of applications read at their start."""

    digest: str = Field(description="Digest of the settings.")
    since: str = Field("", description="When the settings last changed; older pods have the previous settings.")


class Status(Part):
    """What the layer is."""

    model_config = ConfigDict(frozen=False)

    observed_generation: int = Field(
        json_schema_extra=INT64, description="Generation of the resource that this status describes."
    )
    conditions: list[Condition] = Field(
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        description="Accepted, Ready, Progressing, Degraded, Stalled and AppsOutdated.",
    )
    replicas: int = Field(description="Number of forwarder pods.")
    forwarders: int = Field(description="Desired number of forwarders.")
    ready_forwarders: int = Field(description="Number of ready forwarders.")
    ready: str = Field(description="Ready and desired forwarders, such as 2/2, for the table of kubectl.")
    selector: str = Field(description="Label selector of the forwarders' pods.")
    version: str | None = Field(
        None, description="Version of the operator that last applied the forwarders' Deployment."
    )
    addresses: list[str] | None = Field(
        None, description="Addresses of the forwarders: for producers, then for subscribers."
    )
    settings: AppSettings | None = Field(None, description="Settings that pods of applications read at their start.")
    keys_rotated_for: str | None = Field(
        None, description="Last completed rotateNow: earlier keys are no longer on any list of allowed keys."
    )
    binding: Binding | None = Field(
        None, description="Secret with the connection settings for other tools (servicebinding.io)."
    )


Key = tuple[str, str]
"""Namespace and name of a layer."""


class Owner(BaseModel):
    """The layer that owns objects."""

    model_config = ConfigDict(frozen=True)

    name: str
    namespace: str
    uid: str
    generation: int = 0

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def reference(self) -> dict[str, Any]:
        """The layer as an object reference, as in an event."""
        where = {"name": self.name, "namespace": self.namespace, "uid": self.uid}
        return {"apiVersion": API_VERSION, "kind": KIND, **where}

    @classmethod
    def of(cls, resource: dict[str, Any]) -> "Owner":
        """Return the owner for a resource."""
        metadata = resource["metadata"]
        return cls(
            name=metadata["name"],
            namespace=metadata.get("namespace", "default"),
            uid=metadata.get("uid", ""),
            generation=metadata.get("generation", 0),
        )


def parse(resource: dict[str, Any], *, ignores_unknown: bool = False) -> Spec:
    """Return the spec of a resource.

    Args:
        resource: The resource, from the cluster or from a file.
        ignores_unknown: Whether unknown fields are ignored. In a cluster the API server prunes them, except those of a
            newer definition than this version's, which an upgrade installs before its operator.

    Raises:
        SpecError: If the spec is invalid; the message names every invalid field.
    """
    spec = resource.get("spec") or {}
    if len(json.dumps(spec)) > LARGEST_SPEC:
        raise SpecError(f"spec: longer than {LARGEST_SPEC} characters")
    try:
        return Spec.model_validate(spec, extra="ignore" if ignores_unknown else "forbid")
    except ValidationError as error:
        raise SpecError("; ".join(_sentence(problem) for problem in error.errors())) from None


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on what the author of a layer may set in its forwarders' pods, which the operator's permissions create.

    Args:
        image_overrides: Whether the layer may set another image.
        labels: Prefixes of the labels that it may set.
        annotations: Prefixes of the annotations that it may set.
        pod_overrides: Whether it may set more fields of the pods than those in `PLACEMENT`.
    """

    image_overrides: bool = False
    labels: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    pod_overrides: bool = False

    def check(self, spec: Spec) -> None:
        """Check a spec.

        Raises:
            SpecError: If it sets fields that are not allowed; the message names each, and the setting to change.
        """
        image = {"repository": spec.image.repository, "tag": spec.image.tag, "digest": spec.image.digest}
        refused = [
            f"image.{name} (layers.imageOverrides)" for name in image if image[name] and not self.image_overrides
        ]
        metadata = spec.pod_template.metadata
        for field, setting, given, prefixes in (
            ("labels", "allowedLabels", metadata.labels, self.labels),
            ("annotations", "allowedAnnotations", metadata.annotations, self.annotations),
        ):
            wrong = [key for key in given if not key.startswith(prefixes)]
            refused += [f"podTemplate.metadata.{field}.{key} (layers.{setting})" for key in wrong]
        if not self.pod_overrides:
            wrong = [key for key in spec.pod_template.spec if key not in PLACEMENT]
            refused += [f"podTemplate.spec.{key} (layers.podOverrides)" for key in wrong]
        if refused:
            said = "; ".join(f"spec.{one}" for one in refused)
            raise SpecError(
                f"not allowed in this cluster: {said}. The names in brackets are the values of the operator's chart "
                "that allow it"
            )


def _sentence(problem: Any) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
    return f"spec{path}: {problem['msg'].removeprefix('Value error, ')}"
