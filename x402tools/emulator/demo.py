"""Fills empty books with a few envelopes and some usage, to have something to look at."""

from __future__ import annotations

from x402tools.emulator.state import Books

ENVELOPES = (
    ("API calls", 10_000, "MONTHLY", 1),
    ("Image generation", 500, "DAILY", None),
    ("Tokens", 5_000_000, "WEEKLY", 1),
    ("Archive storage", 1_000, "YEARLY", None),
)
RECORDS_PER_ENVELOPE = 5
AMOUNTS = (7, 12, 1, 30, 50)


def seed(books: Books) -> None:
    """Add the envelopes and their usage, unless the books have envelopes already. The last envelope stays unused."""
    if books.envelopes():
        return
    with books.transaction():
        made = [books.add_envelope(*values) for values in ENVELOPES]
        for envelope in made[:-1]:
            for number in range(RECORDS_PER_ENVELOPE):
                books.add_usage(envelope, AMOUNTS[number], '{"source":"demo"}', None)
