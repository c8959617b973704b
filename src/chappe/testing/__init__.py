"""Shipped fakes and tools, for tests and the demo; nothing else in Chappe imports this package."""
