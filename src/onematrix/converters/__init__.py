"""Converters: torch modules as programs."""
