"""Progress bars and timings shared by the commands."""

import contextlib
import time
from collections.abc import Iterator
from types import TracebackType

from tqdm import tqdm


class Stages:
    """A progress bar on standard error over a command's named stages; remembers their times.

    Use it as a context manager; after an error the bar is wiped, so that the error stands alone.

    Args:
        total: number of stages.

    Attributes:
        seconds: stage name -> wall time in seconds; of stages of one name the sum.
    """

    def __init__(self, total: int):
        self.seconds: dict[str, float] = {}
        self._bar = tqdm(
            total=total,
            bar_format="{desc:<36}|{bar:24}| {n_fmt}/{total_fmt} {elapsed}{postfix}",
        )

    def __enter__(self) -> "Stages":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._bar.set_description_str("done")
        else:
            self._bar.leave = False
        self._bar.close()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show `name` while the block runs and advance the bar after it."""
        self._bar.set_postfix_str("", refresh=False)
        self._bar.set_description_str(name)
        start = time.perf_counter()
        yield
        elapsed = time.perf_counter() - start
        self.seconds[name] = round(self.seconds.get(name, 0.0) + elapsed, 3)
        self._bar.update()

    def note(self, text: str) -> None:
        """Show a detail, such as a step's number, beside the bar."""
        self._bar.set_postfix_str(text)
