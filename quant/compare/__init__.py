"""Two models beside each other on held-out rows of the log, the long tail in front."""
