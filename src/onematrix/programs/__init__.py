"""Programs: parts, block matrices, steps and schedules; their meaning, their text, their modules."""
