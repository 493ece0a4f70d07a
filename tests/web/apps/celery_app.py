"""A Celery application whose tasks are metered. CLIENT says where the client is made: before the fork, or after it."""

from __future__ import annotations

import os
import pathlib

import celery
from celery.signals import worker_process_init, worker_process_shutdown

from x402tools import UsageBuffer, X402Client

FOLDER = pathlib.Path(os.environ["BROKER"])

app = celery.Celery("celery_app", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": str(FOLDER / "queue"),
        "data_folder_out": str(FOLDER / "queue"),
        "control_folder": str(FOLDER / "control"),
        "polling_interval": 0.05,
    },
    task_ignore_result=True,
    worker_prefetch_multiplier=50,  # older releases look into the folder once a second
)


def new_client():
    return X402Client("sk_emulator", os.environ["BASE_URL"], buffer=UsageBuffer(os.environ["SPOOL"]))


client = new_client() if os.environ["CLIENT"] == "before" else None


@worker_process_init.connect
def make_client(**_):
    global client
    client = client or new_client()


@worker_process_shutdown.connect
def close_client(**_):
    client.close()


def work(number):
    """Every tenth one fails, and is not billed."""
    if number % 10 == 9:
        raise ValueError("a failing task")


def key_of_the_task(_):
    return celery.current_task.request.id


if client is not None:  # both ways of metering a task
    metered = client.metered(
        os.environ["ENVELOPE"], metadata=lambda call: {"number": call.args[0]}, idempotency_key=key_of_the_task
    )
    render = app.task(metered(work), name="render")
else:

    @app.task(name="render")
    def render(number):
        key = key_of_the_task(None)
        with client.meter(os.environ["ENVELOPE"], metadata={"number": number}, idempotency_key=key):
            work(number)
