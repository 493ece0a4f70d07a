"""Sentences about a number of things."""

from __future__ import annotations


def counted(count: int, one: str, many: str) -> str:
    """The sentence for one or for many, or nothing for none; `many` replaces as many words of `one` as it has."""
    if count < 2:
        return f"1 {one}" if count else ""
    return " ".join([f"{count:,}", many, *one.split()[len(many.split()) :]])
