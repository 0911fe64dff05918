"""One dataset as a timeline of records: runs, their segments, what they add up to, in and out."""
