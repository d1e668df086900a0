"""Package the chart into dist/ with the digests of its images: `package.py HELM [operator=sha256:...] [forwarder=...]`.

The repository's chart names images by the version alone; one that is released names exactly those that were built.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHART = Path(__file__).resolve().parent / "channels-zmq"
PARTS = {"operator": "image", "forwarder": "forwarderImage"}
"""The values of each image."""
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def pinned(values: str, digests: dict[str, str]) -> str:
    """Return the text of values.yaml with the digests of images.

    Raises:
        SystemExit: A name is not one of these images, or a digest is not one.
    """
    for image, digest in digests.items():
        if image not in PARTS or not DIGEST.fullmatch(digest):
            sys.exit(
                f"{image}={digest}: name operator or forwarder, and a digest such as sha256: and 64 hexadecimal digits"
            )
        pattern = re.compile(rf'(^{PARTS[image]}:\n(?:(?:  .*)?\n)*?  digest: )""$', re.MULTILINE)
        values, count = pattern.subn(rf"\g<1>{digest}", values)
        if count != 1:
            sys.exit(f"values.yaml has no empty {PARTS[image]}.digest")
    return values


def main(helm: str, *given: str) -> None:
    """Copy the chart, write the digests, and let Helm make an archive."""
    digests = dict(one.split("=", 1) for one in given)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / CHART.name
        shutil.copytree(CHART, copy)
        values = copy / "values.yaml"
        values.write_text(pinned(values.read_text(encoding="utf-8"), digests), encoding="utf-8")
        subprocess.run([helm, "package", str(copy), "--destination", "dist"], check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
