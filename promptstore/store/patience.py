"""How long a writer or reader keeps trying."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Bounds of retrying, and the sleep and randomness that it uses.

    fault_tries: calls that meet a passing fault before giving up; with the default pauses some seconds.
    race_tries: lost races before giving up; a hundred racing writers need some dozens each.
    """

    fault_tries: int = 8
    race_tries: int = 2000
    first_pause_s: float = 0.02
    longest_fault_pause_s: float = 2.0
    longest_race_pause_s: float = 0.3
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform

    def after_faults(self) -> Iterator[int]:
        """Numbers of tries from 0, with a pause before each but the first; ends when patience does."""
        return self._tries(self.fault_tries, self.longest_fault_pause_s)

    def after_races(self) -> Iterator[int]:
        """As `after_faults`, for races lost to other writers: pauses stay short, since every loss is somebody's win."""
        return self._tries(self.race_tries, self.longest_race_pause_s)

    def _tries(self, count: int, longest_s: float) -> Iterator[int]:
        pause_s = self.first_pause_s
        for number in range(count):
            if number:
                # Full jitter: writers that collided once must not collide again in step.
                self.sleep(self.uniform(0, pause_s))
                pause_s = min(2 * pause_s, longest_s)
            yield number


DEFAULT_PATIENCE = Patience()
