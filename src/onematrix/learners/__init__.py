"""From a dense matrix to a structured one."""
