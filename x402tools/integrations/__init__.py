"""What other frameworks need to use x402tools; each module imports its own framework.

Metrics: `prometheus` and `opentelemetry`. Metering for web services: `wsgi`, `asgi` and `django` have a
`MeteringMiddleware` each. What counts is the same for all. A request is counted once, when its answer has ended:

| the request | counted by default |
|---|---|
| was answered with a status below 500: 2xx, 3xx, and 4xx too, which the service had to work out | yes |
| was answered, and the client left before the end of the body | yes: the work was done |
| was answered with 500 or more | no |
| raised, before its answer or in the middle of a streamed body | no |
| was left by its client before an answer began | no |
| is a websocket that was accepted | yes, once, when it has ended |

`count=` is another rule: a function of the request and the response.
"""

from __future__ import annotations

from x402tools.integrations._exchange import Request, Response, was_answered
from x402tools.integrations._meter import Metering

__all__ = ["Metering", "Request", "Response", "was_answered"]
