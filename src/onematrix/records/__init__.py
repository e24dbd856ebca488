"""Measured numbers on disk: atomic files, JSON lines, and the facts of the machine they were measured on."""
