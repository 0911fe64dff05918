"""What one ssh key may ask for: its command line, its role, its part of a pool."""
