"""The inputs of rendering besides a spec: the keys of its layer, and the operator's settings for all layers."""

from dataclasses import dataclass, field

from channels_zmq_operator.models import Limits


@dataclass(frozen=True, slots=True)
class LayerKeys:
    """The CURVE keys of one layer, which are never shown.

    Args:
        server_public: What clients know of the forwarders.
        server_secret: What only the forwarders have.
        client_secret: What clients have now.
        allowed: Public keys of clients: the present one, the next one if it is announced, and the one before.
        rotated_at: When clients got their present one.
        next_secret: What clients will have next; empty unless it is announced.
        announced_at: When it was.
        rotated_for: The last `rotateNow` that was done.
        announced_for: The `rotateNow` for which the next one is announced; empty if only the time has come.
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
    """How ServiceMonitors look, unless a layer says otherwise.

    Args:
        labels: By which Prometheus finds them.
        interval: How often it reads.
    """

    labels: dict[str, str] = field(default_factory=dict)
    interval: str = "30s"


@dataclass(frozen=True, slots=True)
class Choices:
    """What the operator was told for all layers.

    Args:
        forwarder_image: The default image.
        monitors: Of the forwarders.
        service_monitors: Whether the cluster knows that kind.
        limits: What authors of layers may choose; None for everything.
        assigns_users: Whether the cluster assigns users to pods, as OpenShift does, and refuses others.
        cluster_domain: With which the names of Services end; empty for names that the pods' resolver completes.
    """

    forwarder_image: str
    monitors: Monitors = Monitors()
    service_monitors: bool = False
    limits: Limits | None = None
    assigns_users: bool = False
    cluster_domain: str = "cluster.local"
