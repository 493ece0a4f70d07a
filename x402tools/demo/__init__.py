"""The package at work: a metered service under load, everything failing around it, and the bill checked afterwards.

Where to find what, from the command down:

    run           the arguments, and which of the two shows is played
    show          the service under load: starts the parts, ends them, has the bill checked
      script      which faults when, and what is killed
      stage       where the script is played, and what is seen of it
      service     the metered service, a plain WSGI application; gunicorn_conf, server: how it is served
      load        the HTTP load on it
      log_file    the lines that the service's processes write: what really happened
      checking    what happened against what was billed, request by request
      account     every record of the run against every other, and the verdict
      report      the tables; words: sentences about a number of things
    replay        a file of the user's own events, reported and checked
      usage_file  reads it, a line at a time
      destination where the events go
    folder, progress, interruption: where the files are, what is seen meanwhile, how it is ended early
"""
