"""Measuring: processes of their own, interleaved rounds, a sink, a load generator, the machine."""
