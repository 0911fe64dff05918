"""What the catalog tells: datasets, snapshots, bookmarks, their names, properties and space."""
