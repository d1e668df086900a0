"""Say whether a port can be reached within some seconds: run in a pod by the scenarios.

    python reach.py HOST PORT SECONDS

Prints `reached` or `not reached`. A pod that has just begun may have to wait until the network policies know it.
"""

import socket
import sys
import time

host, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
deadline = time.monotonic() + seconds
found = "not reached"
while found == "not reached" and time.monotonic() < deadline:
    try:
        socket.create_connection((host, port), timeout=2).close()
        found = "reached"
    except OSError:
        time.sleep(0.2)
print(found)
