"""Alembic migrations of the Hub's store."""
