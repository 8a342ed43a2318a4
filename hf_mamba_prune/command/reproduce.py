"""The command that repeats the paper's experiments."""

from __future__ import annotations

from dataclasses import asdict

from hf_mamba_prune.command import options as o
from hf_mamba_prune.command import tables
from hf_mamba_prune.command.console import open_console, print_json
from hf_mamba_prune.command.option_groups import OutputOptions, ReproduceOptions
from hf_mamba_prune.reproduce.run import Reproduction


def reproduce(wanted: ReproduceOptions, sparsities: tuple[float, ...], shown: OutputOptions) -> None:
    """Measure all methods on one benchmark, and write the table."""
    run = Reproduction(
        task=wanted.task,
        data=wanted.data,
        output=wanted.output,
        sparsities=sparsities,
        methods=o.parse_names(wanted.methods),
        scale=wanted.scale,
        seeds=wanted.seeds,
        components=not wanted.no_components,
    )
    with open_console(shown.quiet, shown.as_json) as console:
        results = []
        for result in run.run():
            results.append(result)
            console.print(tables.result_line(result), highlight=False, soft_wrap=True)
        if shown.as_json:
            print_json([asdict(result) for result in results])
        console.print(f"\nSaved in [bold]{run.write_table()}[/].", soft_wrap=True)
