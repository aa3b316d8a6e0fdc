"""Other libraries' progress bars: on a terminal only."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from transformers.utils import logging


@contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """transformers draws its bars within this block if standard error is a terminal, and not into a log file."""
    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


@contextmanager
def quiet_unless_on_a_terminal() -> Iterator[None]:
    """As `bars_on_terminals_only`, for code whose bars have no switch. Log records still reach their handlers."""
    if sys.stderr.isatty():
        yield
        return
    with bars_on_terminals_only(), redirect_stderr(io.StringIO()):
        yield
