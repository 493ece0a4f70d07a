"""Does every event reach the bill once, whatever dies and whatever fails? A chaos campaign, and the judge of it.

File by file:

    plan       draws a round from its seed: processes, how they end, what the service does to them
    recorder   a process that records through the public API and writes down what it was promised
    server     the service: fast, scripted to fail, writes down every attempt it sees
    round      runs one round: starts, kills, stops, drains; every wait has a deadline
    judge      says from what was written down alone whether anything was lost, invented, repeated or miscounted
    campaign   the command: python -m tests.conservation.campaign --rounds 60 --seed 7

What breaks a promise of the README in a round fails here, with the command that repeats the round.
"""
