"""Extract the files of a snapshot into a folder or a tar archive."""
