"""An emulator of the x402 Usage-Based Billing API as this SDK's documentation describes it.

It is never the billing server: it is what a client can be tested against without one. It keeps books (envelopes,
usage, keys), enforces limits, honours ``Idempotency-Key`` and fails on request in the ways networks fail.

Nothing in here imports the client part of this package, so that the emulator cannot agree with the client's bugs.
Start it with ``x402tools emulator``, with ``python -m x402tools.emulator``, or in a test with
:class:`x402tools.testing.Emulator`.
"""
