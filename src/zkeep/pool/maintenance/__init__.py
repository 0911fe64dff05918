"""Maintenance of a pool: compaction, scrub, healing, and which snapshots damage affects."""
