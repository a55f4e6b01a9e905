"""Errors for the log: where they came from, and none of what they say."""

from __future__ import annotations

import errno
import subprocess
import sys

from server.errors import StorageFull
from server.traces import frames_in, without_text


def caught(cause: Exception) -> Exception:
    try:
        try:
            raise cause
        except Exception as error:
            raise KeyError("canary") from error
    except KeyError as error:
        return error


def test_types_and_places_stay_and_messages_go() -> None:
    lines = without_text(caught(ValueError("canary"))).splitlines()
    assert (lines[0], lines[2]) == ("KeyError", "caused by ValueError")
    assert lines[1].startswith(f'  File "{__file__}", line ')
    assert lines[1].endswith(", in caught")
    assert "canary" not in str(lines)


def test_messages_that_hold_no_text_stay() -> None:
    assert "caused by server.errors.StorageFull: make room" in without_text(caught(StorageFull("make room")))
    assert "caused by OSError: No space left on device" in without_text(caught(OSError(errno.ENOSPC, "canary", "canary")))
    assert "canary" not in without_text(caught(OSError("canary")))


def test_an_error_that_causes_itself_ends() -> None:
    error = caught(ValueError())
    error.__cause__ = error
    assert without_text(error).startswith("KeyError\n")


def test_of_a_traceback_the_frames_and_the_type_are_kept() -> None:
    code = "import json\njson.loads('canary')"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    found = frames_in(f"canary\n{output}canary\ncanaryError: canary").splitlines()
    assert found[0].endswith("in loads")
    assert found[-1] == "json.decoder.JSONDecodeError"
    assert "canary" not in str(found)


def test_of_a_crash_the_signal_and_the_frames_are_kept() -> None:
    output = (
        f'Fatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n  File "{__file__}", line 3 in parse\n'
    )
    assert frames_in(output) == f'Fatal Python error: Segmentation fault\n  File "{__file__}", line 3 in parse'


def test_text_that_looks_like_a_place_is_none() -> None:
    assert frames_in('File "canary.py", line 3, in canary\nValueError: canary\nFatal Python error: canary') == ""
