"""Encrypted snapshots as plain streams: authenticated, decrypted, and sent."""
