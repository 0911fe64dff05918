"""zkeep: encrypted, snapshot-based, incremental backups that the server can never decrypt."""

__version__ = "0.1.0"
