"""Streams in and streams out: judged, landed, addressed, packed."""
