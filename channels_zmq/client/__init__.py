"""What a client process decides: bytes in; bytes out, and whom to wake.

Here belongs state that needs neither a socket nor a thread nor an event loop: mailboxes, memberships, credit, requests,
sequence numbers, counters. `Client` holds the parts and takes each frame. Everything is called under the lock of the
connection that owns the client. Nothing here waits, logs, or calls code of the application; what a step wants done is
collected in `Client.out` and in `Counters.reports`, and the connection does it.
"""
