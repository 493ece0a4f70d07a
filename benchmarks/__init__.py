"""What `make bench` runs. `run.py` is the entry; `sections/` has one file a section; `peers/` what they are measured
beside; `harness/` measures; `report/` shows and compares."""
