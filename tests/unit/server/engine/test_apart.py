from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from server.engine.apart import apart
from server.engine.host_cache import HostAdapter, HostCache
from server.engine.request import ArtefactRef


def test_it_runs_on_a_thread_of_its_own_that_ends() -> None:
    before = threading.active_count()
    assert apart(threading.get_ident) != threading.get_ident()
    assert threading.active_count() == before


def test_arguments_results_and_errors_pass() -> None:
    assert apart(divmod, 7, 2) == (3, 1)
    with pytest.raises(KeyError, match="gone"):
        apart(dict[str, int]().__getitem__, "gone")


def test_loaders_compute_alone_and_leave_the_number_of_threads_of_others() -> None:
    wanted = torch.get_num_threads()
    seen: list[int] = []

    def load(ref: ArtefactRef) -> HostAdapter:
        seen.append(torch.get_num_threads())
        raise OSError

    cache = HostCache(load, 0)
    try:
        assert cache.fetch(ArtefactRef(digest="a", manifest_sha256="", directory=Path("a"))).exception()
    finally:
        cache.close()
    assert seen == [1]
    assert apart(torch.get_num_threads) == wanted
