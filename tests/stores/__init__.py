"""The same promises on every store. File by file:

servers       engines of their own for the tests: Redis, Valkey, a replica, a cluster, a network that can be cut
pair          a primary and a replica that can take over
chaos         the command: python -m tests.stores.chaos --store redis --rounds 20 --seed 7
chaos_plan    draws a round from its seed
chaos_round   runs one round and sets the bill against what was recorded
chaos_process what a recorder and a worker of a round do
weather       what happens to an engine meanwhile: killed, full, cut off, replaced by its replica; and to a cluster
"""
