"""Sources of snapshots: folders and disk images of this machine."""
