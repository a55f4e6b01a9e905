"""The README's curl tour, from the README's own text, against `kmserve up`."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tests.support.kmserve_up import TREE, kmserve_up
from tests.support.unavailable import unavailable


def tour() -> str:
    """The tour's bash blocks as one script."""
    section = (TREE / "README.md").read_text(encoding="utf-8").partition("<!-- tour -->")[2].partition("<!-- /tour -->")[0]
    return "\n".join(re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL))


def test_the_tour_works_as_written(tmp_path: Path) -> None:
    for tool in ("bash", "curl", "python3"):
        if shutil.which(tool) is None:
            unavailable(f"the tour needs {tool}")
    with kmserve_up(tmp_path) as up:
        script = ["bash", "-euo", "pipefail", "-c", tour()]
        done = subprocess.run(script, cwd=TREE, env={**up.environ, "KMS_URL": up.url}, capture_output=True, text=True, timeout=300)
        whole = up.log.read_text(errors="replace")
    log = whole[-4000:]
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{log}"
    assert "Traceback" not in whole
    assert "Exception during reset" not in whole
    for shown in ('"title":"Travel and leave policy"', '"answer":', "event: answer.completed", '"logprobs"', '"hits"'):
        assert shown.replace('"logprobs"', "logprobs") in done.stdout
    assert "event: document" in done.stdout
    assert "scope_missing" in done.stdout
    assert done.stdout.rstrip().endswith("document_not_found")


def test_the_tour_has_blocks() -> None:
    assert tour().count("kms ") > 10
