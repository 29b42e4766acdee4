"""``retort advise``: which path to cheaper answers pays for the traffic that a log holds."""
