"""The handlers: each takes a `Call` and answers a wire type. Who may call them stands in `hub.table`."""
