"""The pilot: runs Jobs inside an allocation. The head speaks with the Hub; the launcher owns the processes.

Importing this package costs nothing: the launcher must stay small.
"""
