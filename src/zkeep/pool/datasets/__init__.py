"""Datasets, snapshots and bookmarks in the catalog: their names, properties and space."""
