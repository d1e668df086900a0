"""The decisions of a client process: it takes frames, and returns frames to send and readers to wake.

This package contains state that needs neither a socket nor a thread nor an event loop: mailboxes, memberships, credit,
requests, sequence numbers, counters. `Client` holds the parts and takes each frame. All methods are called under the
lock of the connection that owns the client. They never wait, log, or call code of the application: `Client.out` and
`Counters.reports` collect the actions of a step, and the connection executes them.
"""
