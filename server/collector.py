"""Python's garbage collector, kept off what stays: half a million objects of libraries and models, whose walk stops every thread for
a third of a second and more, whenever it comes."""

from __future__ import annotations

import gc


def keep_what_is_here() -> None:
    """Collect once, and do not look again at what is left. For a process that has loaded what it serves with; called again, it lets go
    of what has become garbage since."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
