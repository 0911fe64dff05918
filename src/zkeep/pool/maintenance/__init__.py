"""What keeps a pool well: compaction, scrub, what a flaw hurts."""
