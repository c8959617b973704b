"""The Site: a directory under the user's own account, and the agent that serves it from one machine."""
