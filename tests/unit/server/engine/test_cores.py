"""The cores that engine and trainer share."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engine.cores import ENGINE, TRAINER, CoreShare


@pytest.mark.parametrize("cores", [2, 3, 8])
def test_one_alone_uses_all_and_both_never_more_than_there_are(tmp_path: Path, cores: int) -> None:
    engine, trainer = CoreShare(tmp_path, ENGINE, cores), CoreShare(tmp_path, TRAINER, cores)
    with engine.active():
        assert engine.threads() == cores
        with trainer.active():
            assert engine.threads() + trainer.threads() == cores
        assert engine.threads() == cores
    assert trainer.threads() == cores
    engine.close()
    trainer.close()
