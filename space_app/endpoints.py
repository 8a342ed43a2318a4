"""The two endpoints for programs: typed, documented, and tools for agents through MCP."""

from __future__ import annotations

from dataclasses import asdict

import gradio as gr
from inspection import inspect
from jobs import DONE, Service, Visitor
from orders import Order, Refusal
from worker import prune

from hf_mamba_prune import PruningReport


def visitor_of(request: gr.Request) -> Visitor:
    """Who asks."""
    forwarded = request.headers.get("x-forwarded-for", "")
    address = forwarded.split(",")[0].strip() or (request.client.host if request.client else "")
    return Visitor(request.session_hash or "", address)


class Endpoints:
    """What programs may call.

    Args:
        service: that runs the jobs.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe_model(self, model_id: str, sparsity: float = 0.7, recipe: str = "quick") -> dict:
        """Say what a Mamba model is, what can be pruned in it, and what pruning it here would cost.

        Args:
            model_id: Hub id like state-spaces/mamba-130m-hf, or mamba-wiki-3m for the bundled model.
            sparsity: share of the prunable weights to remove, 0.1 to 0.9.
            recipe: quick (no training), standard (distilled training) or paper (pruned in training).
        """
        try:
            found = inspect(Order(model_id, sparsity, recipe), self._service.limits)
        except Refusal as refusal:
            raise gr.Error(str(refusal), print_exception=False) from None
        facts = asdict(found)
        del facts["order"]
        return {"model": found.order.model, "fits": found.too_big is None, **facts}

    def prune_model(
        self,
        model_id: str,
        sparsity: float = 0.7,
        recipe: str = "quick",
        samples: int = 32,
        request: gr.Request = None,
    ) -> dict:
        """Prune a Mamba model on this machine; waits in the queue, then works for a minute or more.

        Args:
            model_id: Hub id like state-spaces/mamba-130m-hf, or mamba-wiki-3m for the bundled model.
            sparsity: share of the prunable weights to remove, 0.1 to 0.9.
            recipe: quick (no training), standard (distilled training) or paper (pruned in training).
            samples: calibration sequences of 512 tokens, 8 to 256.
        """
        try:
            order = Order(model_id, sparsity, recipe, samples=samples)
            found = inspect(order, self._service.limits)
            if found.too_big:
                raise Refusal(f"This model does not fit here: {found.too_big}.")
            job = self._service.submit(visitor_of(request), prune, order)
        except Refusal as refusal:
            raise gr.Error(str(refusal), print_exception=False) from None
        while not job.over:
            job.wait(len(job.messages), 1.0)
        if job.state != DONE:
            raise gr.Error(job.error or "The job ended.", print_exception=False)
        report = PruningReport.from_dict(job.result)
        return {
            "model": order.model,
            "sparsity": report.sparsity.prunable.sparsity,
            "perplexity_dense": report.before[0].perplexity,
            "perplexity": report.after[0].perplexity,
            "tokens_per_second_dense": report.speeds[0].decode_tokens_per_second,
            "tokens_per_second": report.speeds[-1].decode_tokens_per_second,
            "bytes_dense": report.speeds[0].file_bytes,
            "bytes": report.speeds[-1].file_bytes,
            "download": f"result/{job.id}.zip",
        }
