"""Composition root: settings in, objects out. Imports no torch."""
