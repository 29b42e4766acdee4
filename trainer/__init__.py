"""From a snapshot of the log to a student's checkpoint."""
