"""What one-shot pruning, or rounding, of mamba-130m's shape costs: time by step and the highest memory.

    python benchmarks/one_shot_cost.py [--bits 2.5] [--steps 8] [--samples 128] [--threads 2]

Random weights (no pretrained ones are needed to see the cost), 70 % of the projections or a number of bits, calibrated
on real text of 512 tokens a sequence, beside the cost that the command's plan names. The data folder is that of the
environment variable HF_MAMBA_PRUNE_DATA (default ../shared/data).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from transformers import MambaConfig, MambaForCausalLM, PreTrainedTokenizerFast

from hf_mamba_prune import PruningConfig, prune, read_text, use_native
from hf_mamba_prune.plan import make_plan

DATA = Path(os.environ.get("HF_MAMBA_PRUNE_DATA", "../shared/data"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=int, default=None, help="pruning steps; the product's default where none is given"
    )
    parser.add_argument(
        "--samples", type=int, default=None, help="calibration sequences, the product's default likewise"
    )
    parser.add_argument("--bits", type=float, default=None, help="round to this budget instead of pruning")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(hidden_size=768, num_hidden_layers=24, vocab_size=50280)).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(DATA / "tokenizer" / "gpt-neox-20b.json"))
    text = read_text(str(DATA / "text" / "enwiki.txt.xz"), "train")
    asked = {"sparsity": 0.7, "steps": arguments.steps} if arguments.bits is None else {"bits": arguments.bits}
    config = PruningConfig(calibration_samples=arguments.samples, **asked)
    plan = make_plan(model, config)
    started = time.perf_counter()
    with use_native(model):
        report = prune(model, tokenizer, config, text)
    whole = time.perf_counter() - started
    peak = max(cost.peak_bytes for cost in report.costs)
    print(
        f"130m shape, {report.config['calibration_samples']} x 512 tokens, {asked}, {arguments.threads} threads; "
        f"planned {plan.seconds:.0f} s and {plan.memory_bytes / 1e9:.2f} GB\n"
    )
    print("| step | seconds |\n|---|---|")
    for cost in report.costs:
        print(f"| {cost.step} | {cost.seconds:.0f} |")
    print(f"| all | {whole:.0f} |\n\npeak memory of the process {peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
