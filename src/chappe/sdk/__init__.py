"""The Python client: define an App's runs, submit them signed, wait for them without polling.

`drafts` says what is to run, `sending` signs and sends it, `feed` is the one stream that all waits share,
`engine` is the one implementation (async), `aio` and `sync` are its two faces.
"""
