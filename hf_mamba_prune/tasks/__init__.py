"""The paper's benchmarks: WikiText-103, Long Range Arena and ETT, one file each."""

from __future__ import annotations

from hf_mamba_prune.tasks.base import Scale, Splits, Task
from hf_mamba_prune.tasks.ett import ETT
from hf_mamba_prune.tasks.image import IMAGE
from hf_mamba_prune.tasks.listops import LISTOPS
from hf_mamba_prune.tasks.pathfinder import PATHFINDER
from hf_mamba_prune.tasks.retrieval import RETRIEVAL
from hf_mamba_prune.tasks.text import TEXT
from hf_mamba_prune.tasks.wikitext103 import WIKITEXT103

__all__ = ["TASKS", "Scale", "Splits", "Task"]

TASKS: dict[str, Task] = {
    task.name: task for task in (WIKITEXT103, LISTOPS, TEXT, RETRIEVAL, IMAGE, PATHFINDER, *ETT.values())
}
