"""Datasets that are mounted read-write: changes wait in memory, and are committed as the dataset's head."""
