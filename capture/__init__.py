"""The log of what the teacher thought: tap, spool, commit, tables."""
