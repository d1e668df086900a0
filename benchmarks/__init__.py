"""Ratios against peers, measured in one run on one machine.

This package contains the measures, the peers that they run against and the table of goals. Nothing in the library, the
forwarder or the operator may import from here. The figures are not tests, because they depend on the machine. The run
does check, and ends with an error otherwise, that every receiver got the right number of messages, in the right order,
with the right content.

Reading order: `__main__` (flags), `run` (rounds), `peers`, `servers` and `trees` (the layers that are measured), `crew`
(the processes), `messages`, `measures` (the figures, with `relays` and `first_message`), `goals`, `comparison`,
`report`.
"""
