"""`python -m benchmarks.serving`: see `arguments.ABOUT`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from kmserve_client.errors import KmserveClientError
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.serving.arguments import parse_arguments
from benchmarks.serving.run import run
from benchmarks.serving.table import print_report
from server.cli_stack import StackError, terminable
from server.errors import KmserveError


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    console = Console(highlight=False)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    try:
        with terminable(), Progress(*columns, console=console, transient=True) as bars:
            bar = bars.add_task("starting", total=None)
            report = run(arguments, lambda doing: bars.update(bar, description=doing))
    except KeyboardInterrupt:
        sys.exit(130)
    except (StackError, KmserveError, KmserveClientError, ValueError) as error:
        sys.exit(f"error: {error}")
    arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print_report(console, report)
    console.print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
