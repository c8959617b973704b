"""Pure rules: what Chappe decides, as functions of recorded facts.

Nothing here reads a clock, draws a random number, or does I/O; callers pass `now` and ids in. That is
what lets the same rules run in the Hub, in a test's model and in a reader's head.
"""
