"""The paper's benchmarks: WikiText-103, Long Range Arena and ETT, one file each."""

from __future__ import annotations

from hf_mamba_prune.reproduce.tasks.base import Scale, Splits, Task
from hf_mamba_prune.reproduce.tasks.ett import ETT
from hf_mamba_prune.reproduce.tasks.image import IMAGE
from hf_mamba_prune.reproduce.tasks.listops import LISTOPS
from hf_mamba_prune.reproduce.tasks.pathfinder import PATHFINDER
from hf_mamba_prune.reproduce.tasks.retrieval import RETRIEVAL
from hf_mamba_prune.reproduce.tasks.text import TEXT
from hf_mamba_prune.reproduce.tasks.wikitext103 import WIKITEXT103

__all__ = ["TASKS", "Scale", "Splits", "Task"]

TASKS: dict[str, Task] = {
    task.name: task for task in (WIKITEXT103, LISTOPS, TEXT, RETRIEVAL, IMAGE, PATHFINDER, *ETT.values())
}
