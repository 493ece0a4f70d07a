"""The same service under FastAPI."""

from __future__ import annotations

import itertools
import os
from typing import Any, Dict

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from benchmarks.programs.metering import meter

app = FastAPI()
record = meter()
numbers = itertools.count()
waits = os.environ["BENCH_METER"] == "synchronous"  # such a call may not stand in the way of the event loop


@app.get("/items/{item}")
async def read_item(item: int) -> Dict[str, Any]:
    """One of a list of things."""
    user = next(numbers) % 50
    if waits:
        await run_in_threadpool(record, "/items", "GET", user)
    else:
        record("/items", "GET", user)
    return {"id": item, "name": f"item {item}", "tags": ["a", "b", "c"], "prices": {"EUR": item * 3, "USD": item * 4}}
