"""Keys that change while forwarders and clients use them."""

from pathlib import Path

from channels_zmq_forwarder.curve import new_pair

KEYS = ("first", "second", "third")


class Rotation:
    """The key of all clients, in a file that each client reads, and the list of the keys that may connect."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pairs = {name: [key.decode() for key in new_pair()] for name in ("server", *KEYS)}
        self.server_key = self._pairs["server"][0]
        self.write("server.secret", self._pairs["server"][1])
        self.allow(KEYS[0])
        self.give(KEYS[0])

    def file(self, name: str) -> str:
        return str(self._folder / name)

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags that give a forwarder the server's key and the list."""
        return (
            f"--curve-secret-key-file={self.file('server.secret')}",
            f"--curve-allowed-keys-file={self.file('allowed')}",
        )

    @property
    def config(self) -> dict[str, str]:
        """Settings that give a client its key."""
        return {"curve_server_key": self.server_key, "curve_secret_key_file": self.file("client.secret")}

    def write(self, name: str, text: str) -> None:
        """Replace a file atomically, as a mounted volume does."""
        fresh = self._folder / f"{name}.new"
        fresh.write_text(f"{text}\n", encoding="ascii")
        fresh.replace(self._folder / name)

    def allow(self, *names: str) -> None:
        self.write("allowed", "\n".join(self._pairs[name][0] for name in names))

    def give(self, name: str) -> None:
        self.write("client.secret", self._pairs[name][1])
