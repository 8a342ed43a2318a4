"""The command that repeats the paper's experiments."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from hf_mamba_prune.command import options as o
from hf_mamba_prune.command import tables
from hf_mamba_prune.command.console import open_console, print_json
from hf_mamba_prune.command.option_groups import OutputOptions, flattened
from hf_mamba_prune.reproduce.run import Reproduction
from hf_mamba_prune.reproduce.tasks.results import METHODS

ALL_METHODS = ",".join(METHODS)


@flattened
def reproduce(
    task: o.TaskName,
    shown: OutputOptions,
    data: o.DataFolder = Path("data"),
    output: o.ResultsFolder = Path("reproduced"),
    sparsities: o.Sparsities = "0.5,0.6,0.7,0.8",
    methods: o.Methods = ALL_METHODS,
    scale: o.ScaleName = "small",
    seeds: o.Seeds = 3,
    no_components: o.NoComponents = False,
) -> None:
    """Train a dense model on one of the paper's benchmarks, prune it by several methods, and write the table."""
    levels = o.parse_numbers("--sparsities", sparsities)
    run = Reproduction(task, data, output, levels, o.parse_names(methods), scale, seeds, not no_components)
    with open_console(shown.quiet, shown.as_json) as console:
        results = []
        for result in run.run():
            results.append(result)
            console.print(tables.result_line(result), highlight=False, soft_wrap=True)
        if shown.as_json:
            print_json([asdict(result) for result in results])
        console.print(f"\nSaved in [bold]{run.write_table()}[/].", soft_wrap=True)
