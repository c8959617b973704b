"""What both ends of a wire share: keys, signatures, trust, ledger, crc'd files, Apps, and the Hub's client.

The Site's agent, the pilot and the SDK stand on it. Unlike `core`, it does I/O and reads the clock.
"""
