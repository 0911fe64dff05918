"""A plain send stream -> changes to objects, for the next snapshot: it becomes encrypted on arrival."""
