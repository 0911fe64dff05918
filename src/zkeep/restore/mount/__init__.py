"""Show snapshots as read-only folders (FUSE)."""
