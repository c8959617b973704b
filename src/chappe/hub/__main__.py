"""`python -m chappe.hub`: start a Hub in the foreground."""

from __future__ import annotations

import sys

from chappe.hub.main import main

if __name__ == "__main__":
    sys.exit(main())
