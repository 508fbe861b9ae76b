"""A progress bar with the time left."""

from __future__ import annotations

from types import TracebackType


class Bar:
    """tqdm over a known amount of work of any unit; a context manager.

    Raises ImportError with the command to run where tqdm is missing.
    """

    def __init__(self, total: float) -> None:
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise ImportError("the progress bar needs tqdm: pip install 'adt_plugin[demo]'") from error
        layout = "{desc}{percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left"
        self._bar = tqdm(total=total, bar_format=layout, dynamic_ncols=True, smoothing=0.05)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    def advance(self, work: float) -> None:
        """Add work that has been done; sums of shares may end a rounding error above the whole."""
        self._bar.update(min(work, self._bar.total - self._bar.n))

    def name(self, text: str) -> None:
        """Show what is being done now."""
        self._bar.set_description(text)
