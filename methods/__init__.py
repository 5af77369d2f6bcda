"""Implementations: one family a folder, one method a file, its plain reference beside it."""
