"""Alembic's environment: always on the connection, and in the transaction, that the caller opened."""

from alembic import context

from chappe.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,
)
context.run_migrations()
