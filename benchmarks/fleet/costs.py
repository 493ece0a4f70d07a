"""What things cost, measured: CPU microseconds of one 2-core machine under CPython 3.11, with Redis 7.0.15 on loopback
and AOF every second. Another machine differs by a factor that is the same for most of them, so pass your own."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Costs:
    """Unit costs; times in microseconds of CPU unless said otherwise.

    Attributes:
        encode_event: recording host: an event in a batch (`_batch.encode`: 0.4 without metadata to 0.6; by rows 2.4).
        publish_batch: recording host: one script call by redis-py, and what a batch costs beside its events.
        engine_batch: engine: the script that takes a batch in, with its persistence.
        engine_kib: engine: more of it for each KiB.
        engine_read_batch: engine: handing it out, acknowledging and deleting it.
        read_batch: worker: reading and decoding a batch, beside its events.
        fold_event: worker: an event of a group that is known (`_batch.recorded_rows` and `Fold.add`).
        fold_group: worker: the first event of a group in a window (14.7 in all where every event is one).
        seal_post: worker: freezing a POST (`Fold.posts` and `encode_posts`).
        post: worker: sending it (README: 112 to 151).
        entry_bytes: engine: memory of an entry beside its value.
        post_bytes: engine: memory of a POST that waits (12 without metadata to 37).
        busy: how much of a core is planned to be used; the rest is for peaks.
    """

    encode_event: float = 0.6
    publish_batch: float = 110.0
    engine_batch: float = 60.0
    engine_kib: float = 6.0
    engine_read_batch: float = 14.0
    read_batch: float = 40.0
    fold_event: float = 1.3
    fold_group: float = 11.0
    seal_post: float = 5.0
    post: float = 130.0
    entry_bytes: float = 60.0
    post_bytes: float = 25.0
    busy: float = 0.6


MEASURED = Costs()
