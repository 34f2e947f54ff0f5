"""Progress bars and timings shared by the commands."""

import contextlib
import time
from collections.abc import Iterator

from tqdm import tqdm


class Stages:
    """A progress bar over a command's named stages, which also remembers what each one took.

    Attributes:
        seconds: stage name -> wall time in seconds.
    """

    def __init__(self, total: int):
        self.seconds: dict[str, float] = {}
        self._bar = tqdm(total=total, bar_format="{desc:<32}{bar:24} {n_fmt}/{total_fmt} {elapsed}")

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show `name` while the block runs and advance the bar after it."""
        self._bar.set_description_str(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)
        self._bar.update()

    def note(self, text: str) -> None:
        """Show a detail, such as a step's number, beside the bar."""
        self._bar.set_postfix_str(text)

    def close(self) -> None:
        """End the bar."""
        self._bar.set_description_str("done")
        self._bar.close()
