from __future__ import annotations

from io import StringIO

from rich.console import Console

from worker.evaluation.parts import ASIDE, Bar


def test_the_bars_clock_goes_on_while_the_work_is_the_same() -> None:
    bar = Bar(Console(file=StringIO()))
    (task,) = bar._progress.tasks
    bar("modules, 2 at once", 0, 4)
    begun = task.start_time
    bar(f"modules, 2 at once{ASIDE}fitting 1/64", 1, 4)
    assert (task.description, task.completed, task.total) == ("modules, 2 at once - fitting 1/64", 1, 4)
    assert task.start_time == begun
    bar("KM_mixed: answering", 0, 9)
    assert task.start_time != begun
