"""A chat over a channel layer: rooms, recent history, presence, typing marks and a background worker.

It needs neither a database nor another server: the members keep the state of a room, and exchange it through the
channel layer. `rooms` is the pure part, `consumers` one connected page, `jobs` the worker behind a normal channel.
"""
