"""What reached a terminal, or a pipe."""

import os


def read_to_end(descriptor: int) -> str:
    """All that was written to the other end, which must be closed everywhere by then or soon; closes this one."""
    said = b""
    try:
        while piece := os.read(descriptor, 65536):
            said += piece
    except OSError:  # how a terminal says that its other end is closed
        pass
    os.close(descriptor)
    return said.decode()
