"""Recurrences as fast loops: elementwise bodies, dense bodies, linear scans, and torch's native cells."""
