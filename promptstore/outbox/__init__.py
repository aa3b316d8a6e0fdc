"""Changes of the log sent to other systems: each at least once, in order."""
