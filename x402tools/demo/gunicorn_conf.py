"""How gunicorn serves the demo's service: its configuration file.

gunicorn ignores what it does not know in here, so that settings of newer versions do no harm in older ones.
"""

from __future__ import annotations

worker_class = "gthread"  # the plainest kind that keeps connections alive
threads = 2
keepalive = 5  # seconds
graceful_timeout = 15  # seconds; the client's own exit_timeout is 2
loglevel = "info"  # in the run folder: who was killed and who came instead
control_socket_disable = True  # newer versions would put a socket into the user's home folder
