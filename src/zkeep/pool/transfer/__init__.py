"""Receive and send: whole streams, plain and compound, into a pool and out of it."""
