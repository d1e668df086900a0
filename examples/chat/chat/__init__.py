"""A chat over a channel layer: rooms, recent history, presence, typing marks and a background worker.

There is no database and no other server: what a room is lives in its members, and they tell each other through the
channel layer. `rooms` is the pure part, `consumers` one connected page, `jobs` the worker behind a normal channel.
"""
