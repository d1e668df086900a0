"""Read metrics of pods as Prometheus does, from a pod of the cluster: run by the recorder of the scenarios.

    python scrape.py NAME...

Each line of its input is a JSON list of URLs. It answers by one line of JSON: a list with the samples of these names
that each URL has, as text, or null for one that does not answer.
"""

import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException

TIMEOUT = 10.0  # seconds, as Prometheus has by default
NAMES = tuple(sys.argv[1:])


def scrape(url: str) -> str | None:
    """Return the samples that are wanted."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            lines = answer.read().decode().splitlines()
    except (OSError, HTTPException):  # also of a process that is killed while it answers
        return None
    return "".join(f"{line}\n" for line in lines if line.startswith(NAMES))


with ThreadPoolExecutor(32) as threads:
    for line in sys.stdin:
        print(json.dumps(list(threads.map(scrape, json.loads(line)))), flush=True)
