"""A snapshot opened with its key: objects and blocks, each authenticated before it is used."""
