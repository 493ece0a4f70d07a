"""A Django site in one file that is metered; `application` for WSGI, `asgi_application` for ASGI."""

from __future__ import annotations

import asyncio
import io

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    MIDDLEWARE=["x402tools.integrations.django.MeteringMiddleware", "django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of a test",
    X402TOOLS_METERING="billing.metering",
)
django.setup()

ENDLESS = 200_000  # see the Flask application


def plain(request):
    return HttpResponse("hello")


async def plain_async(request):
    return HttpResponse("hello")


def streamed(request):
    return StreamingHttpResponse(piece for piece in ("a", "b", "c"))


def endless(request):
    return StreamingHttpResponse(b"x" * 1024 for _ in range(ENDLESS))


async def endless_async(request):
    async def pieces():
        for _ in range(ENDLESS):
            yield b"x" * 1024
            await asyncio.sleep(0)

    return StreamingHttpResponse(pieces())


async def breaks_async(request):
    async def pieces():
        yield b"a"
        raise RuntimeError("in the middle of the body")

    return StreamingHttpResponse(pieces())


def breaks_midway(request):
    def pieces():
        yield "a"
        raise RuntimeError("in the middle of the body")

    return StreamingHttpResponse(pieces())


def raises(request):
    raise RuntimeError("before the answer")


def file(request):
    return FileResponse(io.BytesIO(b"y" * 5000))


urlpatterns = [
    path("plain", plain),
    path("broken-metering", plain),
    path("plain-async", plain_async),
    path("streamed", streamed),
    path("endless", endless),
    path("endless-async", endless_async),
    path("breaks-midway", breaks_midway),
    path("breaks-async", breaks_async),
    path("raises", raises),
    path("file", file),
]

application = get_wsgi_application()
asgi_application = get_asgi_application()
