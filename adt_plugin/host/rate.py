"""The adversarial part's own learning rate, put into the host's optimizers while they work, and taken out again.

The host's scheduler never sees it: it reads and writes the rates between optimizer steps, and saves them in its states. An
optimizer that steps inside the backward pass (`--fused_backward_pass`) finds the rate there as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from adt_plugin.core.schedule import AdversarialRate


class RestartedRate:
    """Gives the optimizers the rate of the step that is under way.

    Args:
        rate: by optimizer step.
        optimizers: torch's own, whose groups remember the rate that they were built with (`initial_lr`), as every scheduler of
            torch lets them. Without a scheduler, as with schedule-free optimizers, it is the rate that they have now. A group
            that finds its own rate, such as Adafactor's with a relative step, is left alone.
        undos: takes the optimizers' hooks away.
    """

    def __init__(self, rate: AdversarialRate, optimizers: Iterable[Any], undos: ExitStack) -> None:
        self.rate, self.optimizers, self.step = rate, list(optimizers), 0
        self._kept: list[tuple[dict[str, Any], Any]] = []  # groups and their own rates
        self._found = {id(group): group["lr"] for group in self._groups()}
        for optimizer in self.optimizers if rate.share else ():
            undos.callback(optimizer.register_step_pre_hook(lambda *_: self._put_in()).remove)
            undos.callback(optimizer.register_step_post_hook(lambda *_: self._take_out()).remove)

    @contextmanager
    def during(self, step: int) -> Iterator[None]:
        """Put the rate in during a backward pass of this optimizer step (from 0); the step itself finds it by its hooks."""
        self.step = step
        self._put_in()
        try:
            yield
        finally:
            self._take_out()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Give the optimizers their own rates back inside, as for a state that is saved in the middle of a turn."""
        is_in = bool(self._kept)
        self._take_out()
        try:
            yield
        finally:
            if is_in:
                self._put_in()

    def _groups(self) -> Iterator[dict[str, Any]]:
        groups = (group for optimizer in self.optimizers for group in optimizer.param_groups)
        yield from (group for group in groups if group.get("lr") is not None and not group.get("relative_step"))

    def _put_in(self) -> None:
        share = self.rate.at(self.step)
        if share is None or self._kept:
            return
        for group in self._groups():
            self._kept.append((group, group["lr"]))
            group["lr"] = _like(group["lr"], share * float(group.get("initial_lr") or self._found.get(id(group), group["lr"])))

    def _take_out(self) -> None:
        for group, own in self._kept:  # not the optimizer's groups now: DeepSpeed steps one of them at a time
            group["lr"] = own
        self._kept.clear()


def _like(found: Any, value: float) -> Any:
    """Return the value as the optimizer holds its rate: some hold a tensor, for graphs that are captured once."""
    return found.new_tensor(value) if hasattr(found, "new_tensor") else value
