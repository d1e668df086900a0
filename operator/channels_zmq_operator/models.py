"""What a `ZmqChannelLayer` may say: the one source of the resource's schema, its defaults and its documentation."""

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
"""Characters of a layer's name: its children add up to 16, and a name in Kubernetes has 63."""

_UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}
_SIZE = re.compile(r"([0-9]+)(Ki|Mi|Gi|k|M|G|)")
_DURATION = re.compile(r"([0-9]+)(s|m|h)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}
LARGEST_SPEC = 2**16
"""Characters of a spec as JSON: the operator keeps those of all layers, and some fields take anything."""
PLACEMENT = (
    "affinity",
    "nodeSelector",
    "priorityClassName",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
)
"""Fields of a pod that say where and for how long it runs, and nothing of what it may do there."""
FREE_FORM: dict[str, Any] = {"x-kubernetes-preserve-unknown-fields": True}
INT64: dict[str, Any] = {"format": "int64"}
STRING_MAP: dict[str, Any] = {"additionalProperties": {"type": "string"}}


class SpecError(ValueError):
    """A resource that cannot be served; the message names the field."""


def size(value: int | str) -> int:
    """Return the bytes of a quantity such as `16Mi`.

    Raises:
        ValueError: It is not one.
    """
    match = _SIZE.fullmatch(str(value))
    if match is None:
        raise ValueError(f"{value!r} is not a size such as 16Mi")
    return int(match[1]) * _UNITS[match[2]]


def seconds(value: str) -> int:
    """Return the seconds of a duration such as `720h`.

    Raises:
        ValueError: It is not one.
    """
    match = _DURATION.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} is not a duration such as 720h")
    return int(match[1]) * _SECONDS[match[2]]


def _checked_size(value: Any) -> Any:
    if not 1 <= size(value) <= 2**31:
        raise ValueError(f"{value!r} is not from 1 to 2Gi")
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
    """A part of the resource: camelCase outside, unknown fields refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Layer(Part):
    """What the applications' layers are told, as in their CONFIG."""

    capacity: int = Field(
        100, ge=1, le=10**6, description="Messages that may wait on one channel; the newest is refused."
    )
    expiry: int = Field(60, ge=1, le=4_000_000, description="Seconds that a message lives.")
    group_expiry: int = Field(
        86400, ge=1, le=10**10, description="Seconds without a sign of life after which a channel leaves its groups."
    )
    channel_capacity: dict[str, Annotated[int, Field(ge=1, le=10**6)]] = Field(
        default_factory=dict, max_length=100, description="Capacities of channels by glob, e.g. jobs.*: 10000."
    )
    max_message_size: Size = Field("1Mi", description="Largest message, e.g. 16Mi; also the forwarder's limit.")


class Security(Part):
    """Who may connect."""

    curve: Literal["Enabled", "Disabled"] = Field(
        "Enabled", description="Encryption and keys on both ports (CURVE); the keys are made here."
    )
    encryption: Literal["Enabled", "Disabled"] = Field(
        "Disabled",
        description="Encrypt payloads from application to application, with the keys in the Secret <layer>-encryption.",
    )
    rotate_every: Duration = Field(
        "720h",
        description="When the applications get a new key. The one before it stays allowed until the next rotation.",
    )
    rotate_now: str = Field(
        "",
        max_length=100,
        description="Any text: a new one gives the applications a new key, and revokes all former ones minutes later.",
    )
    rotate_server_key: bool = Field(
        False,
        description="Whether rotateNow renews the forwarder's key too, and revokes at once: clients wait up to 80 s.",
    )


class Image(Part):
    """The forwarder's image, where it is not the operator's default."""

    repository: str = Field("", max_length=300, description="Registry and name; empty for the operator's default.")
    tag: str = Field("", max_length=128, description="Tag; empty for the operator's default.")
    digest: str = Field("", max_length=100, description="Digest such as sha256:...; it wins over the tag.")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field("IfNotPresent", description="When to pull it.")
    pull_secrets: list[Annotated[str, Field(max_length=253)]] = Field(
        default_factory=list, max_length=10, description="Names of Secrets with credentials of the registry."
    )


class Forwarder(Part):
    """What the forwarders are told; the defaults are their own."""

    pub_high_water_mark: int = Field(
        10_000, ge=1, le=2**31 - 1, description="Frames that are buffered for each subscriber, which misses others."
    )
    subscriber_bytes: Size = Field("64Mi", description="Bytes that a subscriber may be behind.")
    topic_bytes: Size = Field("32Mi", description="Bytes of the names of all groups that have members.")
    queue_bytes: Size = Field("256Mi", description="Memory of the queues of normal channels in each forwarder.")
    queue_names: int = Field(100_000, ge=1, le=2**31 - 1, description="Number of these queues.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="The least that they log.")


class Clients(Part):
    """What the applications' layers are told of how they use forwarders, as in their CONFIG."""

    prefetch: int = Field(
        4, ge=0, le=1000, description="Messages of a normal channel that a process fetches ahead of its readers."
    )
    outbox_capacity: int = Field(10_000, ge=0, le=10**9, description="Messages held while no forwarder takes them.")
    outbox_bytes: Size = Field("64Mi", description="Their bytes, and those of what is not acknowledged.")
    connect_timeout: int = Field(5, ge=1, le=3600, description="Seconds that a call waits for an answer.")
    linger: int = Field(1, ge=0, le=60, description="Seconds that the end of a process may spend on sent messages.")
    on_disconnect: str = Field(
        "",
        max_length=100,
        description="Type of the message to every consumer when all forwarders are gone; empty: none.",
    )
    on_reconnect: str = Field("", max_length=100, description="Type of that when one is back; empty: none.")


class PodMetadata(Part):
    """Metadata of the forwarders' pods."""

    labels: dict[str, str] = Field(default_factory=dict, description="Labels beside the operator's.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations beside the operator's.")


class PodTemplate(Part):
    """Additions to the forwarders' pods."""

    metadata: PodMetadata = Field(default_factory=PodMetadata, description="Labels and annotations.")
    spec: dict[str, Any] = Field(
        default_factory=dict,
        json_schema_extra=FREE_FORM,
        description="As in a pod; the operator's own fields win. Its container is called forwarder.",
    )

    @field_validator("spec")
    @classmethod
    def _check_tolerations(cls, value: dict[str, Any]) -> dict[str, Any]:
        tolerations = value.get("tolerations", [])
        if not isinstance(tolerations, list) or not all(isinstance(one, dict) for one in tolerations):
            raise ValueError("tolerations is not a list of objects")
        if not all(isinstance(one.get(name, ""), str) for one in tolerations for name in ("key", "effect")):
            raise ValueError("a key or an effect of tolerations is not text")
        return value


class NetworkPolicy(Part):
    """The network policy of the forwarders."""

    enabled: bool = Field(True, description="Let only pods of the namespace with the label channels-zmq.io/layer in.")
    metrics_from: list[dict[str, Any]] = Field(
        default_factory=list,
        max_length=50,
        description="Who reads the forwarders' metrics: `from` of a NetworkPolicy; empty for everybody.",
    )


class Monitoring(Part):
    """What collects the forwarders' metrics."""

    service_monitor: Literal["Auto", "Disabled"] = Field(
        "Auto", description="Make a ServiceMonitor where the cluster knows that kind."
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Labels of it, beside those of the operator.")
    interval: str = Field(
        "",
        max_length=10,
        pattern="^([0-9]+(ms|s|m|h))?$",
        description="How often metrics are read, such as 30s; empty for the operator's default.",
    )


class Spec(Part):
    """What a layer should be. Every field has a default: an empty spec is a working layer."""

    forwarders: int = Field(
        2, ge=1, le=64, description="Forwarders, all equal: with two or more, one that fails loses no group messages."
    )
    layer: Layer = Field(default_factory=Layer, description="What the applications' layers are told.")
    security: Security = Field(default_factory=Security, description="Who may connect.")
    image: Image = Field(default_factory=Image, description="The forwarder's image.")
    resources: dict[str, Any] = Field(
        default_factory=lambda: {
            "requests": {"cpu": "50m", "memory": "64Mi"},
            "limits": {"memory": "512Mi"},
        },
        json_schema_extra=FREE_FORM,
        description="Requests and limits of the forwarder's container, as in a pod.",
    )
    forwarder: Forwarder = Field(default_factory=Forwarder, description="What the forwarders are told.")
    clients: Clients = Field(
        default_factory=Clients, description="What the applications are told of how they use forwarders."
    )
    pod_template: PodTemplate = Field(
        default_factory=PodTemplate, description="Additions to the forwarders' pods, as the template of a Deployment."
    )
    paused: bool = Field(False, description="Leave everything as it is, also after the operator was upgraded.")
    network_policy: NetworkPolicy = Field(default_factory=NetworkPolicy, description="Who may reach the forwarders.")
    monitoring: Monitoring = Field(default_factory=Monitoring, description="What collects their metrics.")

    @property
    def told_to_applications(self) -> dict[str, Any]:
        """What applications learn at their start, where it is not the default: a new version may have new fields."""
        security = self.security.model_dump(include={"curve", "encryption"}, exclude_defaults=True)
        parts = {"layer": self.layer, "clients": self.clients}
        return {"security": security} | {name: part.model_dump(exclude_defaults=True) for name, part in parts.items()}


class Condition(Part):
    """One aspect of the state, in the shape that Kubernetes has for it."""

    type: str = Field(description="Accepted, Ready, Progressing, Degraded, Stalled or AppsOutdated.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it is so.")
    reason: str = Field(description="Why, in one word.")
    message: str = Field(description="Why, for people.")
    observed_generation: int = Field(0, json_schema_extra=INT64, description="Of which version of the spec.")
    last_transition_time: str = Field(json_schema_extra={"format": "date-time"}, description="Since when.")


class Binding(Part):
    """The Secret that tells other tools how to connect (servicebinding.io)."""

    name: str = Field(description="Its name, in the layer's namespace.")


class AppSettings(Part):
    """What pods of applications learn at their start."""

    digest: str = Field(description="Changes with the settings.")
    since: str = Field("", description="When they changed last: pods that are older have those of before.")


class Status(Part):
    """What the layer is."""

    model_config = ConfigDict(frozen=False)

    observed_generation: int = Field(json_schema_extra=INT64, description="The version of the spec that this tells of.")
    conditions: list[Condition] = Field(
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        description="Accepted, Ready, Progressing, Degraded, Stalled and AppsOutdated.",
    )
    replicas: int = Field(description="How many pods of forwarders there are.")
    forwarders: int = Field(description="How many forwarders there should be.")
    ready_forwarders: int = Field(description="How many of them are ready.")
    ready: str = Field(description="Ready forwarders of how many, for the table.")
    selector: str = Field(description="Labels of the forwarders' pods.")
    version: str | None = Field(None, description="Version of the operator that the forwarders' pods are made by.")
    addresses: list[str] | None = Field(
        None, description="Where the forwarders listen: for producers, and for consumers."
    )
    settings: AppSettings | None = Field(None, description="What pods of applications learn at their start.")
    keys_rotated_for: str | None = Field(
        None, description="The rotateNow that is done: keys from before are on no list of allowed keys any more."
    )
    binding: Binding | None = Field(
        None, description="The Secret that tells other tools how to connect (servicebinding.io)."
    )


Key = tuple[str, str]
"""Namespace and name of a layer."""


class Owner(BaseModel):
    """The layer that children belong to."""

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
        """The layer as an event refers to it."""
        where = {"name": self.name, "namespace": self.namespace, "uid": self.uid}
        return {"apiVersion": API_VERSION, "kind": KIND, **where}

    @classmethod
    def of(cls, resource: dict[str, Any]) -> "Owner":
        """Return the owner that a resource is."""
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
        resource: As the cluster has it, or a file.
        ignores_unknown: Whether fields that it should not have are ignored. In a cluster the API server removes them,
            but for those of a newer definition than this version's, which an upgrade installs before its operator.

    Raises:
        SpecError: It cannot be served; names every field that is wrong.
    """
    spec = resource.get("spec") or {}
    if len(json.dumps(spec)) > LARGEST_SPEC:
        raise SpecError(f"spec: it has more than {LARGEST_SPEC} characters")
    try:
        return Spec.model_validate(spec, extra="ignore" if ignores_unknown else "forbid")
    except ValidationError as error:
        raise SpecError("; ".join(_sentence(problem) for problem in error.errors())) from None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the author of a layer may choose of its forwarder's pods, for which the operator's rights are used.

    Args:
        image_overrides: Whether the image may be another one.
        labels: Prefixes of labels.
        annotations: Prefixes of annotations.
        pod_overrides: Whether the pods may be changed in other respects than where they run.
    """

    image_overrides: bool = False
    labels: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    pod_overrides: bool = False

    def check(self, spec: Spec) -> None:
        """Check a spec.

        Raises:
            SpecError: If it chooses something that is not allowed; names every field, and the setting to change.
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
                f"not allowed in this cluster: {said}. The names in brackets are values of the operator's chart"
            )


def _sentence(problem: Any) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
    return f"spec{path}: {problem['msg'].removeprefix('Value error, ')}"
