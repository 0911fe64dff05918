"""Backups as one command: what both sides have becomes a plan, and the plan is carried out. Nothing here has a key."""
