"""The Hub's state in SQL: tables, migrations, named statements, and the one writer.

`open_store` (store.db) gives a `Store`. Every change goes through its `writer` as a function of a
transaction; every read through `read` on a connection that cannot write.
"""
