"""The commands of `x402tools`, one file a group; `click` and the extra `cli` begin here.

    app       the commands by name, and what becomes of errors
    options   what many commands take: where the service is, --json
    output    tables, facts and JSON, for a terminal and for a pipe; screen: the only door to rich
    envelopes, usage, keys                     the API
    buffer, watch, drain, export, audit, doctor    a spool
    replay, worker, local                      what runs for longer

What is done stands apart from how it is told: a command gets its facts from the client, from a buffer or from
`x402tools._inspect`, and hands them to `output`.
"""
