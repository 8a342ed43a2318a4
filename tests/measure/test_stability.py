"""The decay of the recurrence is the one that the model's own scan applies."""

from __future__ import annotations

import torch
from tiny_models import VOCABULARY, build_model

from hf_mamba_prune import use_native
from hf_mamba_prune.measure.stability import measure_decay

SEQUENCES = torch.randint(VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(4))
SCANS = ("mamba_selective_scan", "mamba2_chunk_scan")


def decays_in_the_scan(model, monkeypatch):
    """exp(dt A) of every call of the scan, from the arguments that the model gives it."""
    seen = []
    path = type(next(m for m in model.modules() if type(m).__name__.endswith("Mixer"))).__module__
    module = __import__(path, fromlist=["x"])
    (name,) = [name for name in SCANS if name in vars(module)]
    stock = vars(module)[name]

    def scan(u, dt, A, *rest, **options):
        if name == SCANS[0]:
            bias = options["delta_bias"] if "delta_bias" in options else rest[4]
            step = torch.nn.functional.softplus(dt + bias[:, None])
            seen.append(torch.exp(step[..., None] * A[:, None]))
        else:
            step = torch.nn.functional.softplus(dt + options["dt_bias"])
            seen.append(torch.exp(step.clamp(*options.get("dt_limit", (0.0, float("inf")))) * A))
        return stock(u, dt, A, *rest, **options)

    monkeypatch.setattr(module, name, scan)
    with torch.no_grad():
        for ids in SEQUENCES.split(1):
            model(ids, use_cache=False)
    return seen


def test_the_decay_is_that_of_the_scan(model, monkeypatch):
    model.eval()
    layers = model.config.num_hidden_layers
    found = measure_decay(model, SEQUENCES)
    seen = decays_in_the_scan(model, monkeypatch)
    assert [decay.layer for decay in found] == list(range(layers)) and len(seen) == 2 * layers
    for layer, decay in enumerate(found):
        own = torch.stack(seen[layer::layers])
        assert abs(decay.largest - float(own.max())) < 1e-5 and abs(decay.mean - float(own.mean())) < 1e-5
        assert 0 < decay.mean < decay.largest < 1


def test_no_weight_makes_it_grow():
    model = build_model("mamba").eval()
    for name, weight in model.named_parameters():
        if name.endswith(("A_log", "dt_proj.bias")):
            weight.data.fill_(-8.0)
    with use_native(model):
        assert all(0.99 < decay.largest < 1 for decay in measure_decay(model, SEQUENCES))
