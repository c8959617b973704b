"""`python -m chappe.pilot`: see `chappe.pilot.main`."""

from __future__ import annotations

import sys

from chappe.pilot.main import main

if __name__ == "__main__":
    sys.exit(main())
