"""Doors for messages: what came in by mail, with what it is taken apart by, up to the journal.

Each door takes bytes from a network that anybody may write to, so everything here is bounded: sizes, parts,
depth, lines, connections and time. Nothing is acknowledged before the journal has it.
"""
