"""The operator's settings, from environment variables `CHANNELS_ZMQ_OPERATOR_...`; parsed once, at the edge."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from channels_zmq_operator.models import Limits
from channels_zmq_operator.render import Choices, Monitors

PREFIX = "CHANNELS_ZMQ_OPERATOR_"


Names = Annotated[list[str], NoDecode]
"""A list whose environment variable separates its items by commas."""


class Settings(BaseSettings):
    """Settings of one operator process, or of one webhook process."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    namespace: str = Field("default", description="Namespace of the operator, with its Lease and certificates.")
    watch_namespaces: Names = Field(
        default_factory=list, description="Namespaces to watch for layers, separated by commas; empty for all."
    )
    identity: str = Field("channels-zmq-operator", description="Name of this replica: the name of its pod.")
    forwarder_image: str = Field("channels-zmq-forwarder:0.1.0", description="Default image of the forwarders.")
    cluster_domain: str = Field(
        "cluster.local",
        description="DNS domain of the cluster's Services; empty for names without it, which pods complete.",
    )
    restrict_layers: Literal["Auto", "Always", "Never"] = Field(
        "Auto",
        description="Whether layers may use only what the next four settings allow; Auto: if all namespaces are "
        "watched.",
    )
    image_overrides: bool = Field(False, description="Whether layers may use another image.")
    allowed_labels: Names = Field(
        default_factory=list, description="Prefixes of allowed pod labels, separated by commas."
    )
    allowed_annotations: Names = Field(
        default_factory=list, description="Prefixes of allowed pod annotations, separated by commas."
    )
    pod_overrides: bool = Field(False, description="Whether layers may change more of their pods than scheduling.")
    service_monitor_labels: Names = Field(
        default_factory=list,
        description="Labels of the forwarders' ServiceMonitors, such as `release=prometheus`, separated by commas.",
    )
    service_monitor_interval: str = Field("30s", description="Scrape interval of the forwarders' metrics.")
    webhook_name: str = Field("", description="Name of the MutatingWebhookConfiguration; empty for no webhook.")
    webhook_service: str = Field("channels-zmq-webhook", description="Name of the webhook's Service.")
    webhook_secret: str = Field(
        "channels-zmq-webhook", description="Name of the Secret with the webhook's certificate."
    )
    certificates: Literal["Operator", "External"] = Field(
        "Operator", description="Whether the operator issues the webhook's certificates, or another program."
    )
    certificate_folder: str = Field("/certificates", description="Directory of the webhook's certificate.")
    webhook_port: int = Field(10250, ge=1, le=65535, description="Port of the webhook.")
    admin_port: int = Field(8080, ge=1, le=65535, description="Port of health checks and metrics.")
    resync: float = Field(600.0, gt=0, description="Seconds after which every layer is reconciled again.")
    workers: int = Field(8, ge=1, le=100, description="Number of layers that are reconciled concurrently.")
    leader_election: bool = Field(False, description="Whether replicas elect a leader; only the leader reconciles.")
    lease_name: str = Field("channels-zmq-operator", description="Name of the Lease that the leader holds.")
    log_format: Literal["plain", "json"] = Field("plain", description="Format of log lines.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Minimum level of log lines.")

    @field_validator(
        "watch_namespaces", "allowed_labels", "allowed_annotations", "service_monitor_labels", mode="before"
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("service_monitor_labels")
    @classmethod
    def _check_labels(cls, value: list[str]) -> list[str]:
        if wrong := [one for one in value if not one.partition("=")[0] or "=" not in one]:
            raise ValueError(f"{wrong[0]!r} is not a label such as release=prometheus")
        return value

    @property
    def choices(self) -> Choices:
        """Defaults for fields that layers leave empty, and limits on the fields that they set."""
        labels = dict(one.split("=", 1) for one in self.service_monitor_labels)
        return Choices(
            self.forwarder_image,
            Monitors(labels, self.service_monitor_interval),
            limits=self.limits,
            cluster_domain=self.cluster_domain,
        )

    @property
    def limits(self) -> Limits | None:
        """Limits on what authors of layers may set; None without limits."""
        if self.restrict_layers == "Never" or (self.restrict_layers == "Auto" and self.watch_namespaces):
            return None
        return Limits(
            self.image_overrides, tuple(self.allowed_labels), tuple(self.allowed_annotations), self.pod_overrides
        )
