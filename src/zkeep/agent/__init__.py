"""The agent: a process that holds loaded keys in memory, and the client side of it."""
