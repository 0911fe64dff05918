"""Bytes to values and back: records, streams, nvlists. Pure: fed bytes, gives values; no file, no socket."""
