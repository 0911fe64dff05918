"""Where a pool lies: blobs, locks, the journal that is the truth, the index made from it."""
