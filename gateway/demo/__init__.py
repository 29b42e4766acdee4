"""The whole loop on one machine, driven as a user would drive it: ``retort demo``."""
