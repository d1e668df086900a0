"""Ratios against peers, measured in one run on one machine.

Here belong the measures, the peers that they run against and the table of goals. Nothing in the library, the
forwarder or the operator may import from here, and no figure here is a test: a machine's speed is no truth about the
code. What *is* checked, and ends the run with an error, is that every receiver got the right number of messages, in
the right order, with the right content.

Reading order: `__main__` (flags), `run` (rounds), `peers`, `servers` and `trees` (who is measured), `crew` (the
processes), `messages`, `measures` (what is measured, with `relays` and `first_message`), `goals`, `comparison`,
`report`.
"""
