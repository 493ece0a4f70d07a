"""A FastAPI application that is metered."""

from __future__ import annotations

import asyncio

import fastapi
from billing import metering
from fastapi.responses import PlainTextResponse, StreamingResponse

from x402tools.integrations.asgi import MeteringMiddleware

app = fastapi.FastAPI()
app.add_middleware(MeteringMiddleware, metering=metering)

ENDLESS = 200_000  # see the Flask application


@app.get("/plain")
@app.get("/broken-metering")
async def plain():
    return PlainTextResponse("hello")


@app.get("/streamed")
async def streamed():
    async def pieces():
        for piece in ("a", "b", "c"):
            yield piece

    return StreamingResponse(pieces())


@app.get("/endless")
async def endless():
    async def pieces():
        for _ in range(ENDLESS):
            yield b"x" * 1024
            await asyncio.sleep(0)

    return StreamingResponse(pieces())


@app.get("/breaks-midway")
async def breaks_midway():
    async def pieces():
        yield "a"
        raise RuntimeError("in the middle of the body")

    return StreamingResponse(pieces())


@app.get("/raises")
async def raises():
    raise RuntimeError("before the answer")


@app.websocket("/echo")
async def echo(websocket: fastapi.WebSocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


@app.websocket("/refused")
async def refused(websocket: fastapi.WebSocket):
    await websocket.close()
