"""The inputs of rendering besides a spec: the keys of its layer, and the operator's settings for all layers."""

from dataclasses import dataclass, field

from channels_zmq_operator.models import Limits


@dataclass(frozen=True, slots=True)
class LayerKeys:
    """The CURVE keys of one layer; `repr` shows no secret key.

    Args:
        server_public: Public key of the forwarders, which clients have.
        server_secret: Secret key of the forwarders, which only they have.
        client_secret: Present secret key of the clients.
        allowed: Public keys of clients: the present one, the next one if it is announced, and the one before.
        rotated_at: When clients got their present key.
        next_secret: Next secret key of the clients; empty unless it is announced.
        announced_at: When the next key was announced.
        rotated_for: The `rotateNow` of the last rotation.
        announced_for: The `rotateNow` for which the next key is announced; empty if it is announced on schedule.
        revoke_at: When all keys but the present one are revoked; empty if they stay until the next rotation.
    """

    server_public: str
    server_secret: str = field(repr=False)
    client_secret: str = field(repr=False)
    allowed: tuple[str, ...] = field(repr=False)
    rotated_at: str = ""
    next_secret: str = field(default="", repr=False)
    announced_at: str = ""
    rotated_for: str = ""
    announced_for: str = ""
    revoke_at: str = ""


@dataclass(frozen=True, slots=True)
class Monitors:
    """Defaults of ServiceMonitors: a layer may add labels and set another interval.

    Args:
        labels: Labels by which Prometheus finds the ServiceMonitors.
        interval: Scrape interval.
    """

    labels: dict[str, str] = field(default_factory=dict)
    interval: str = "30s"


@dataclass(frozen=True, slots=True)
class Choices:
    """The settings that apply to all layers.

    Args:
        forwarder_image: Default image of the forwarders.
        monitors: Settings of the forwarders' ServiceMonitors.
        service_monitors: Whether the cluster serves the kind ServiceMonitor.
        limits: Limits on what authors of layers may set; None without limits.
        assigns_users: Whether the cluster assigns users to pods, as OpenShift does, and refuses others.
        cluster_domain: DNS domain of the cluster's Services; empty for names that the pods' resolver completes.
    """

    forwarder_image: str
    monitors: Monitors = Monitors()
    service_monitors: bool = False
    limits: Limits | None = None
    assigns_users: bool = False
    cluster_domain: str = "cluster.local"
