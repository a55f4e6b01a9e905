"""What a step of a module's fit is made of: seconds of steps, then `torch.profiler`'s table of others.

    python -m benchmarks.fit_profile [--document clients/examples/policy.md] [--preset quick] [--threads 2] [--steps 5] [--batches 5,10,20]

Synthesises the document's texts with the base model (minutes on 2 cores) and takes the steps that the fit takes, without evaluations.
--batches also says what an example costs in steps of so many, each in one pack: what batches that are shared by several documents could
win at most, whose own products (a LoRA each, attention) stay as many.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.profiler import profile

from benchmarks.padding import SEED, parser_of, training_examples
from server.engine.base_model import load_base, prepare_base
from worker.training.fit import batch_at, micro_batches
from worker.training.objectives.registry import objective_of
from worker.training.recipe import for_base, recipe_for
from worker.training.student import Student
from worker.training.teacher import TeacherCache, run_teacher

WARM_UP = 2
_LINES = 30


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=5, help="that are timed, and as many that are profiled (default: 5)")
    parser.add_argument("--batches", type=lambda text: [int(size) for size in text.split(",")], default=[], help="numbers with commas")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = load_base(prepare_base(arguments.base, arguments.models_dir))
    recipe = for_base(recipe_for(arguments.preset, {}), base.model.num_parameters())
    with tempfile.TemporaryDirectory() as folder:
        training = training_examples(base, arguments.document.read_text(), arguments.document.stem, recipe, Path(folder))
        cache = TeacherCache(Path(folder) / "teacher")
        run_teacher(base.model.base_model, training, cache, base.device, lambda done, total: None)
        student = Student(base.model, recipe, SEED)
        loss = partial(objective_of(recipe).loss, student, teacher=cache, recipe=recipe, device=base.device)
        optimizer = torch.optim.AdamW(student.parameters().values(), lr=recipe.learning_rate, weight_decay=0.0, fused=True)

        def step(number: int, size: float = recipe.batch_size, packed: int = recipe.micro_batch) -> None:
            for part in micro_batches(batch_at(training, size, SEED, number), packed):
                loss(part).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        def timed(taken: Callable[[int], None]) -> float:
            """Seconds of a step."""
            for number in range(WARM_UP):
                taken(number)
            steps: int = arguments.steps
            started = time.perf_counter()
            for number in range(WARM_UP, WARM_UP + steps):
                taken(number)
            return (time.perf_counter() - started) / steps

        seconds = timed(step)
        of_example = {size: round(timed(partial(step, size=size, packed=size)) / size, 3) for size in arguments.batches}
        with profile(with_flops=True) as profiled:
            for number in range(WARM_UP + arguments.steps, WARM_UP + 2 * arguments.steps):
                step(number)
    averages = profiled.key_averages()
    products = sum(each.flops for each in averages if each.key in ("aten::mm", "aten::addmm_")) / arguments.steps
    print(averages.table(sort_by="self_cpu_time_total", row_limit=_LINES, max_name_column_width=50))
    print(
        json.dumps(
            {
                "threads": arguments.threads,
                "seconds_per_step": round(seconds, 2),
                "product_gflop_per_step": round(products / 1e9, 1),
                "seconds_per_example_by_batch": of_example,
            }
        )
    )


if __name__ == "__main__":
    main()
