"""Fills empty books with a few envelopes and some usage, to have something to look at and to try the examples with."""

from __future__ import annotations

from x402tools.emulator.state import Books

ENVELOPES = (
    ("API calls", 10_000, "MONTHLY", 1),
    ("Image generation", 500, "DAILY", None),
    ("Tokens", 5_000_000, "WEEKLY", 1),
    ("Archive storage", 1_000, "YEARLY", None),
)
# The first envelope has the id that the examples of the documentation name, so that they run as they are printed.
EXAMPLE_ID = "env_1"
RECORDS_PER_ENVELOPE = 5
AMOUNTS = (7, 12, 1, 30, 50)


def seed(books: Books) -> None:
    """Add the envelopes and their usage, unless the books have envelopes already. The last envelope stays unused."""
    if books.envelopes():
        return
    with books.transaction():
        first, *others = ENVELOPES
        made = [books.add_envelope(*first, envelope_id=EXAMPLE_ID), *(books.add_envelope(*other) for other in others)]
        for envelope in made[:-1]:
            for number in range(RECORDS_PER_ENVELOPE):
                books.add_usage(envelope, AMOUNTS[number], '{"source":"demo"}', None)
