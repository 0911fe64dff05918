"""Puts this folder on the path, for the modules that tests share, and sets what holds for all tests."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("zkeep", deadline=None)
settings.load_profile("zkeep")
