"""A Flask service: reads a record, answers with JSON."""

from __future__ import annotations

import itertools
from typing import Any

from flask import Flask, jsonify

from benchmarks.programs.metering import meter

app = Flask(__name__)
record = meter()
numbers = itertools.count()


@app.get("/items/<int:item>")
def read_item(item: int) -> Any:
    """One of a list of things."""
    record("/items", "GET", next(numbers) % 50)
    return jsonify(id=item, name=f"item {item}", tags=["a", "b", "c"], prices={"EUR": item * 3, "USD": item * 4})
