"""Frozen language models and prompting: the one place where [P, H] meets [T, H]. Shared by tuning and runtime."""
