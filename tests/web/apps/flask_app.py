"""A Flask application that is metered."""

from __future__ import annotations

import io

import flask
from billing import metering

from x402tools.integrations.wsgi import MeteringMiddleware

app = flask.Flask(__name__)
app.wsgi_app = MeteringMiddleware(app.wsgi_app, metering)

# So much that no buffer of the operating system takes it all: the server notices that the client has left.
ENDLESS = 200_000


@app.get("/plain")
@app.get("/broken-metering")
def plain():
    return "hello"


@app.get("/streamed")
def streamed():
    return flask.Response(piece for piece in ("a", "b", "c"))


@app.get("/endless")
def endless():
    return flask.Response(b"x" * 1024 for _ in range(ENDLESS))


@app.get("/breaks-midway")
def breaks_midway():
    def pieces():
        yield "a"
        raise RuntimeError("in the middle of the body")

    return flask.Response(pieces())


@app.get("/raises")
def raises():
    raise RuntimeError("before the answer")


@app.get("/file")
def file():
    return flask.send_file(io.BytesIO(b"y" * 5000), "application/octet-stream")
