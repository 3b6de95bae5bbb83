"""Settings of the tests of several machines."""

# A program that a test starts; doctest collection would import it.
collect_ignore = ["worker_script.py"]
