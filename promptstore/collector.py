"""Python's search for reference cycles, kept from slowing a process's start and end."""

import atexit
import gc


def spare_start_and_end() -> None:
    """For whole programs, first thing: torch, transformers and MLflow make a million objects that all stay.

    Looking through them again and again while they come, and once more at the end, is a quarter of such a process's
    processor time until it has work to do.
    """
    gc.set_threshold(50_000, 20, 20)
    atexit.register(gc.freeze)
