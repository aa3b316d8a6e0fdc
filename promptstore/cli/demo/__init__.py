"""`promptstore demo`: the whole idea, once, in a few minutes."""
