"""`python -m chappe.site --dir DIR [--ready-fd N] [--log-stderr]`: the agent as a process of its own."""

from __future__ import annotations

import sys

# structlog loads rich wherever it is installed, for a console that a daemon does not have: 6 MB saved.
# (None is how Python is told that a module cannot be imported. This process has no other use for it.)
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]

from chappe.site.process import main  # noqa: E402 - after the line above, on purpose

sys.exit(main(sys.argv[1:]))
