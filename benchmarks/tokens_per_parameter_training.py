"""One small Mamba, trained at a constant rate, with branches that are decayed at chosen tokens per parameter."""

from __future__ import annotations

import copy
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_small import LENGTH, sequences
from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

from hf_mamba_prune import use_native
from hf_mamba_prune.measure.environment import in_bfloat16

SEEN, BATCH, PEAK, WARM_UP, DECAYED = 28_000, 4, 3e-3, 150, 0.15
SAVED_EVERY, LOGGED_EVERY = 300.0, 100


def build() -> MambaForCausalLM:
    """The model at its random start, always the same."""
    torch.manual_seed(0)
    sizes = dict(num_hidden_layers=4, hidden_size=128, expand=2, state_size=16, vocab_size=4096)
    tokens = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    return MambaForCausalLM(MambaConfig(**sizes, **tokens, tie_word_embeddings=True)).train()


def steps_to(target: float, weights: int) -> int:
    """Steps after which a model has seen `target` tokens per parameter."""
    return round(target * weights / (BATCH * LENGTH))


def rate(step: int, branch: int | None, end: int) -> float:
    """Learning rate of a step: constant after a linear warm-up; on a branch falling to 0 at `end` as 1 - sqrt(x)."""
    if branch is None:
        return PEAK * min(1.0, (step + 1) / WARM_UP)
    start = leaves_trunk(end)
    return PEAK * (1 - ((step - start) / (end - start)) ** 0.5)


def leaves_trunk(end: int) -> int:
    """Step at which the branch that ends at step `end` leaves the trunk."""
    return round((1 - DECAYED) * end)


def batch(data: torch.Tensor, step: int) -> torch.Tensor:
    """(BATCH, LENGTH) token ids of a step: each pass over the seen rows of data (rows, LENGTH) has its own order."""
    each = SEEN // BATCH
    order = np.random.default_rng(step // each).permutation(SEEN)
    rows = order[step % each * BATCH :][:BATCH]
    return data[torch.from_numpy(rows)].long()


def tokens_of(out: Path, text: Path, tokenizer: Path) -> torch.Tensor:
    """(rows, LENGTH) int32 token ids of the text, kept in the folder `out`: cutting it into tokens takes a minute."""
    kept = out / "sequences.npy"
    if not kept.is_file():
        rows = sequences(text, tokenizer).numpy().astype(np.uint16)
        np.save(kept.with_suffix(".new.npy"), rows)
        kept.with_suffix(".new.npy").rename(kept)
    return torch.from_numpy(np.load(kept).astype(np.int32))


def checkpoint(out: Path, target: int) -> Path:
    """Folder of the decayed checkpoint that has seen `target` tokens per parameter."""
    return out / f"tokens-{target}"


class Training:
    """The trunk and its branches: what has been done, and what comes next.

    Args:
        out: folder of the state, the log and the decayed checkpoints.
        data: token ids, (rows, LENGTH).
    """

    def __init__(self, out: Path, data: torch.Tensor) -> None:
        self.out, self.data = out, data
        self.model = build()
        self.weights = sum(p.numel() for p in self.model.parameters())
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        others = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.95), fused=True)
        self.bf16 = in_bfloat16(None, torch.device("cpu"))
        self.step = 0
        self.branch: int | None = None  # tokens per parameter at its end
        self.trunk: dict[str, Any] | None = None  # where the branch left it
        self.lines: list[str] = []
        if (out / "state.pt").is_file():
            self._restore(torch.load(out / "state.pt"))
            (out / "log.jsonl").write_text("".join(self.lines))  # without what came after the state
        self.saved = time.monotonic()

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.branch = state["step"], state["branch"]
        self.trunk, self.lines = state["trunk"], state["lines"]

    def _state(self) -> dict[str, Any]:
        here = dict(model=self.model.state_dict(), optimizer=self.optimizer.state_dict(), step=self.step)
        return here | dict(branch=self.branch, trunk=self.trunk, lines=self.lines)

    def save(self) -> None:
        """Write the state; a kill in between leaves the old one."""
        new = self.out / "state.new"
        torch.save(self._state(), new)
        new.replace(self.out / "state.pt")
        self.saved = time.monotonic()

    def run(self, targets: Sequence[int]) -> None:
        """Train until every target has its decayed checkpoint.

        Args:
            targets: tokens per parameter, ascending.

        Raises:
            ValueError: the trunk is beyond the start of a missing branch, or in the middle of another.
        """
        if self.branch is not None and self.branch not in targets:
            raise ValueError(f"the state is on its way to {self.branch} tokens per parameter; name it in --targets.")
        for target in targets:
            if not checkpoint(self.out, target).is_dir():
                self._decay_at(target)
            if self.branch == target and self.trunk is not None:
                self._restore(self.trunk | dict(lines=self.lines))
                self.save()

    def _decay_at(self, target: int) -> None:
        end = steps_to(target, self.weights)
        if self.branch is None:
            if self.step > leaves_trunk(end):
                raise ValueError(
                    f"the trunk is at step {self.step:,} and the branch of {target} tokens per parameter leaves it at "
                    f"{leaves_trunk(end):,}: leave it out of --targets, or start anew in another folder."
                )
            self._advance(leaves_trunk(end), end)
            self.trunk, self.branch = copy.deepcopy(self._state()), target
            self.save()
        self._advance(end, end)
        new = self.out / "tokens.new"
        shutil.rmtree(new, ignore_errors=True)
        self.model.save_pretrained(new)
        AutoTokenizer.from_pretrained(self.out / "tokenizer").save_pretrained(new)
        new.rename(checkpoint(self.out, target))

    def _advance(self, until: int, end: int) -> None:
        losses: list[float] = []
        started = time.monotonic()
        with use_native(self.model):
            while self.step < until:
                losses.append(self._train_step(end))
                if self.step % LOGGED_EVERY == 0 or self.step == until:
                    seen = len(losses) * BATCH * LENGTH
                    self._log(sum(losses) / len(losses), seen / (time.monotonic() - started))
                    losses, started = [], time.monotonic()
                if time.monotonic() - self.saved > SAVED_EVERY:
                    self.save()

    def _train_step(self, end: int) -> float:
        ids = batch(self.data, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.step, self.branch, end)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.item()

    def _log(self, loss: float, speed: float) -> None:
        tokens = self.step * BATCH * LENGTH
        line = dict(step=self.step, branch=self.branch, tokens=tokens, per_parameter=tokens / self.weights)
        line |= dict(loss=loss, tokens_per_second=speed)
        self.lines.append(json.dumps(line) + "\n")
        with (self.out / "log.jsonl").open("a") as file:
            file.write(self.lines[-1])
