"""Loaded keys: a process that holds them in memory, and how others ask it."""
