"""Values: what a prompt, a task, a version, a commit and a store's state are. Pure; numpy at most."""
