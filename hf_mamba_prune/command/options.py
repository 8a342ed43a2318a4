"""The command's options: names, types and help texts, each once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_mamba_prune.config import ALLOCATION_NAMES, GRADIENT_NAMES, SCORE_NAMES, PruningConfig
from hf_mamba_prune.measure.versions import version
from hf_mamba_prune.schedules import SCHEDULES

DEFAULT = PruningConfig()
PRUNING, DATA, MODEL, OUTPUT, RUNNING = "Pruning", "Data", "Model", "Output", "Running"
HUB = "Hub"


def print_version(wanted: bool) -> None:
    """Print the version and end the command."""
    if wanted:
        print(f"hf-mamba-prune {version()}")
        raise typer.Exit


def _option(panel: str, *names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def _one_of(names: tuple[str, ...]) -> str:
    return ", ".join(names) + "."


Version = Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version.")]
Model = Annotated[str, typer.Argument(help="Hub id or folder of a Mamba language model.", show_default=False)]
OptionalModel = Annotated[str | None, typer.Argument(help="Hub id or folder; without it: the environment.")]

Sparsity = Annotated[
    float | None,
    _option(PRUNING, "--sparsity", "-s", help="Share of the prunable weights to remove, 0 to below 1. Default: 0.5."),
]
Bits = Annotated[
    float | None,
    _option(
        PRUNING, "--bits", help="Bits of a projection weight in the packed file, such as 2.5: what to round it to."
    ),
]
Size = Annotated[
    str | None,
    _option(PRUNING, "--size", help="Size of the packed file instead, such as 60MB: the best model of that size."),
]
NoZeros = Annotated[
    bool,
    _option(PRUNING, "--no-zeros", help="Let --bits and --size choose no masks: faster, and worse below 3 bits."),
]
DemoSparsity = Annotated[
    float, _option(PRUNING, "--sparsity", "-s", help="Share of the prunable weights to remove, 0 to below 1.")
]
Pattern = Annotated[str, _option(PRUNING, "--pattern", help="unstructured, or N:M such as 2:4.")]
ScoreName = Annotated[str, _option(PRUNING, "--score", help="Which weight matters: " + _one_of(SCORE_NAMES))]
RecipeScore = Annotated[
    str | None,
    _option(
        PRUNING, "--score", help="Which weight matters: " + _one_of(SCORE_NAMES) + " Default: fisher, or the recipe's."
    ),
]
Allocation = Annotated[
    str | None,
    _option(
        PRUNING, "--allocation", help="Where the sparsity goes: " + _one_of(ALLOCATION_NAMES) + " Default: global."
    ),
]
Alpha = Annotated[float, _option(PRUNING, "--alpha", help="Exponent of the gradient in gradient-magnitude.")]
Gradient = Annotated[str, _option(PRUNING, "--gradient", help="How sequences add up: " + _one_of(GRADIENT_NAMES))]
Ceiling = Annotated[
    float | None,
    _option(PRUNING, "--ceiling", help="Highest sparsity of one tensor in a global ranking. Default: 0.9 at 0.7."),
]
Components = Annotated[
    str | None,
    _option(PRUNING, "--components", help="What to prune, with commas. Default: in_proj,x_proj,dt_proj,out_proj."),
]
ComponentSparsity = Annotated[
    list[str] | None,
    _option(PRUNING, "--component-sparsity", help="NAME=SPARSITY fixes one component; the others take up the rest."),
]
Schedule = Annotated[str, _option(PRUNING, "--schedule", help="How sparsity rises: " + _one_of(tuple(SCHEDULES)))]
Steps = Annotated[
    int | None,
    _option(PRUNING, "--steps", help="Pruning steps; scores are measured anew before each. Default: 8 to 16, N:M 1."),
]
NoReconstruct = Annotated[
    bool, _option(PRUNING, "--no-reconstruct", help="Only mask: leave the kept weights as they are.")
]
Damping = Annotated[float, _option(PRUNING, "--damping", help="Of the reconstruction's least squares.")]
Recipe = Annotated[
    str,
    _option(
        PRUNING,
        "--recipe",
        help="quick: no training; standard: that, then distilled recovery; paper: gradient-aware magnitude, pruned "
        "in training by cross-entropy.",
    ),
]
RecoverSteps = Annotated[
    int | None,
    _option(PRUNING, "--recover-steps", help="Training steps after pruning. Default: 500, with quick 0."),
]
RecoverRate = Annotated[float, _option(PRUNING, "--recover-lr", help="Peak learning rate of the recovery.")]
RecoverBatch = Annotated[int, _option(PRUNING, "--recover-batch", help="Sequences of 512 tokens of a training step.")]
MaxHours = Annotated[
    float, _option(PRUNING, "--max-hours", help="Refuse to start what would take longer on this CPU.")
]
Seed = Annotated[int, _option(PRUNING, "--seed", help="Of every random choice.")]

Calibration = Annotated[
    str, _option(DATA, "--calibration", help="Text file, or Hub data set as name[:config[:split]], to measure on.")
]
Samples = Annotated[
    int | None,
    _option(
        DATA,
        "--calibration-samples",
        help="Calibration sequences; by default 128, for big models 64; tuning reads up to 4 times as many.",
    ),
]
Length = Annotated[int, _option(DATA, "--calibration-length", help="Tokens of a calibration sequence.")]
RecoverText = Annotated[
    str | None, _option(DATA, "--recover-dataset", help="Text to train on. Default: that of --calibration.")
]
BatchSize = Annotated[int, _option(DATA, "--batch-size", help="Sequences per forward pass; never changes the result.")]
Column = Annotated[str | None, _option(DATA, "--column", help="Text column of the data. Default: text.")]
Texts = Annotated[
    list[str] | None,
    _option(DATA, "--eval", help="Text to evaluate on, before and after; may be repeated. Default: wikitext."),
]
NoEvaluation = Annotated[bool, _option(DATA, "--no-eval", help="Evaluate nothing.")]
Window = Annotated[int, _option(DATA, "--window", help="Tokens of an evaluation window.")]
Stride = Annotated[int | None, _option(DATA, "--stride", help="Tokens between windows. Default: the window.")]
MaxWindows = Annotated[int | None, _option(DATA, "--max-windows", help="Evaluate only the first windows.")]

Tasks = Annotated[
    str | None,
    _option(
        DATA,
        "--tasks",
        help="Zero-shot tasks before and after, with commas: names of lm-eval, or jsonl files (see the README).",
        show_default=False,
    ),
]
MaxExamples = Annotated[int | None, _option(DATA, "--max-examples", help="Ask only the first examples of a task.")]

Revision = Annotated[str | None, _option(MODEL, "--revision", help="Branch, tag or commit of a Hub model.")]
Dtype = Annotated[str, _option(MODEL, "--dtype", help="auto (float32 on a CPU), float32, bfloat16 or float16.")]
Device = Annotated[str, _option(MODEL, "--device", help="auto, cpu, cuda, cuda:1 ...")]
Tokenizer = Annotated[str | None, _option(MODEL, "--tokenizer", help="Hub id or folder. Default: the model's own.")]
NoNative = Annotated[bool, _option(MODEL, "--no-native", help="Leave the native CPU kernels off.")]

Output = Annotated[
    Path | None,
    _option(OUTPUT, "--output", "-o", help="Folder to write. Default: <model>-pruned-<NN> here.", show_default=False),
]
DemoOutput = Annotated[Path, _option(OUTPUT, "--output", "-o", help="Folder to write.")]
Overwrite = Annotated[
    bool, _option(OUTPUT, "--overwrite", help="Replace an earlier result of this tool, here and on the Hub.")
]
DryRun = Annotated[bool, _option(OUTPUT, "--dry-run", help="Print the plan and change nothing.")]
Json = Annotated[bool, _option(OUTPUT, "--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, _option(OUTPUT, "--quiet", "-q", help="No bars and no tables.")]
Debug = Annotated[bool, _option(OUTPUT, "--debug", help="Show the traceback of an error.")]


CODED_VALUES = {"int1": 1, "int2": 2, "int3": 3, "int4": 4}
"""Bits of the codes that pruning rounds kept weights to."""
Values = Annotated[
    str,
    _option(
        OUTPUT,
        "--values",
        help="Of the packed weights: auto (those saved), int8, or int1 to int4, which rounds what is kept.",
    ),
]
PackedValues = Annotated[str, _option(OUTPUT, "--values", help="Of the packed weights: auto (those saved) or int8.")]
Pack = Annotated[bool, _option(OUTPUT, "--pack", help="Write a packed checkpoint into packed/ too, and measure it.")]
PackedOutput = Annotated[
    Path | None,
    _option(
        OUTPUT,
        "--output",
        "-o",
        help="Folder to write. Default: packed/ in a result of this tool, else <model>-packed here.",
        show_default=False,
    ),
]
DenseOutput = Annotated[Path, _option(OUTPUT, "--output", "-o", help="Folder to write.")]

Prompt = Annotated[str, typer.Argument(help="Text to go on from.", show_default=False)]
NewTokens = Annotated[int, _option(RUNNING, "--max-new-tokens", "-n", help="Tokens to write.")]
Temperature = Annotated[float, _option(RUNNING, "--temperature", help="Of the sampling; 0 takes the likeliest token.")]
TopK = Annotated[int, _option(RUNNING, "--top-k", help="Sample among so many tokens.")]
Threads = Annotated[int | None, _option(RUNNING, "--threads", help="CPU threads. Default: torch's.")]
Dense = Annotated[bool, _option(RUNNING, "--dense", help="Run the dense weights where there are packed ones too.")]
NoStock = Annotated[bool, _option(RUNNING, "--no-stock", help="Leave out transformers without kernels.")]

Result = Annotated[Path, typer.Argument(help="Folder that this tool wrote.", show_default=False)]
Push = Annotated[bool, _option(HUB, "--push", help="Push the result to the Hub, in one commit.")]
OnHub = Annotated[
    str | None,
    _option(
        HUB,
        "--on-hub",
        help="Run this command as a Hub Job on such a machine (cpu-upgrade, l4x1 ...); needs --push. It is stopped "
        "after --max-hours.",
        show_default=False,
    ),
]
RepoId = Annotated[
    str | None, _option(HUB, "--repo-id", help="Where to. Default: <user>/<model>-pruned-<NN>.", show_default=False)
]
Private = Annotated[bool, _option(HUB, "--private", help="Make the repository private.")]
CreatePr = Annotated[bool, _option(HUB, "--create-pr", help="Open a pull request instead of committing.")]
Branch = Annotated[
    str | None, _option(HUB, "--revision", help="Branch to push to. Default: main.", show_default=False)
]
PushBranch = Annotated[
    str | None, _option(HUB, "--push-revision", help="Branch to push to. Default: main.", show_default=False)
]
OverwriteRepo = Annotated[bool, _option(HUB, "--overwrite", help="Replace what the repository holds.")]
Force = Annotated[bool, _option(HUB, "--force", help="Push a model with 1.5 x the dense perplexity or more, too.")]

TaskName = Annotated[
    str, typer.Argument(help="listops, image, etth1-96 ...; a wrong one lists all.", show_default=False)
]
DataFolder = Annotated[Path, _option(DATA, "--data", help="Folder of the benchmark's data.")]
ResultsFolder = Annotated[
    Path, _option(OUTPUT, "--output", "-o", help="Folder of the results; what it holds is not run again.")
]
Sparsities = Annotated[str, _option(PRUNING, "--sparsities", help="Of the prunable weights, with commas.")]
Methods = Annotated[str, _option(PRUNING, "--methods", help="With commas.")]
ScaleName = Annotated[str, _option(PRUNING, "--scale", help="small (two cores) or paper (a GPU).")]
NoComponents = Annotated[bool, _option(PRUNING, "--no-components", help="Do not prune each component alone too.")]
Seeds = Annotated[int, _option(PRUNING, "--seeds", help="How many times, each with its own seed.")]

Levels = Annotated[str, _option(PRUNING, "--levels", help="Sparsities to measure, with commas.")]
AnalysisOutput = Annotated[
    Path | None,
    _option(OUTPUT, "--output", "-o", help="Folder to write. Default: <model>-analysis here.", show_default=False),
]


def parse_numbers(option: str, given: str) -> tuple[float, ...]:
    """ "0.1,0.5" -> (0.1, 0.5).

    Raises:
        ValueError: not numbers.
    """
    try:
        return tuple(float(number) for number in given.split(","))
    except ValueError as error:
        raise ValueError(f"{option} is {given!r}; expected sparsities with commas, like 0.3,0.5,0.7.") from error


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(option: str, given: str | None) -> int | None:
    """ "60MB" -> 60,000,000.

    Raises:
        ValueError: not a size.
    """
    if given is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", given)
    if found is None or found[2].upper() not in _UNITS:
        raise ValueError(f"{option} is {given!r}; expected a size of a file, like 60MB or 1.5GB.")
    return round(float(found[1]) * _UNITS[found[2].upper()])


def check_packed_values(given: str) -> str:
    """`--values` of the commands that pack a model as it is.

    Raises:
        ValueError: unknown, or something that a model must be rounded to first.
    """
    if given in CODED_VALUES or given == "rounded":
        raise ValueError(
            f"--values {given} needs a model that is rounded on a calibration text: `hf-mamba-prune MODEL --values "
            "int4`, or `--bits 2.5`, rounds one and packs it."
        )
    if given not in ("auto", "int8"):
        raise ValueError(f"--values is {given!r}; expected one of auto, int8.")
    return given


def parse_shares(given: list[str] | None) -> dict[str, float]:
    """["out_proj=0.5"] -> {"out_proj": 0.5}.

    Raises:
        ValueError: not of the form NAME=NUMBER, or a name comes twice.
    """
    shares: dict[str, float] = {}
    for item in given or []:
        name, _, value = item.partition("=")
        if name.strip() in shares:
            raise ValueError(f"--component-sparsity names {name.strip()} twice: give one sparsity for each component.")
        try:
            shares[name.strip()] = float(value)
        except ValueError as error:
            raise ValueError(f"--component-sparsity is {item!r}; expected NAME=NUMBER, like out_proj=0.5.") from error
    return shares


def parse_names(given: str | None) -> tuple[str, ...]:
    """ "a,b" -> ("a", "b")."""
    return tuple(name.strip() for name in given.split(",") if name.strip()) if given else ()
