"""The story as a whole: exact counts whatever the choices, and a report that says what the model now holds."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import mask_only
from tiny_models import ARCHITECTURE_CASES, VOCABULARY, build_model

from hf_mamba_prune import pruning
from hf_mamba_prune.config import ALLOCATION_NAMES, SCORE_NAMES, PruningConfig
from hf_mamba_prune.files.loading import weights_sha256
from hf_mamba_prune.files.origin import Origin
from hf_mamba_prune.masks.calibration import Need, calibrate
from hf_mamba_prune.masks.scores import build_score
from hf_mamba_prune.measure.evaluation import Evaluation
from hf_mamba_prune.models.targets import find_targets
from hf_mamba_prune.pruning import allocate, prune
from hf_mamba_prune.report import PruningReport
from hf_mamba_prune.schedules import SCHEDULES
from hf_mamba_prune.texts.sources import TextSource

SEQUENCES = torch.randint(VOCABULARY, (3, 8), generator=torch.Generator().manual_seed(4))
TEXT = TextSource("some text", tuple(f" The thing number {i} in the other .\n" for i in range(40)))
SMALL = dict(calibration_samples=2, calibration_length=12)
WAYS = [dict(allocation=allocation) for allocation in ALLOCATION_NAMES]
WAYS += [dict(pattern=pattern) for pattern in ("2:4", "4:8", "1:3")]


def constant(model):
    """Every weight of a target has the same size: magnitude sees nothing but ties."""
    for target in find_targets(model):
        weight = target.weight(model)
        weight.copy_(0.125 * weight.sign())
    return model


def with_zeros(model):
    """Every fifth weight of a row is zero before anything is pruned."""
    for target in find_targets(model):
        target.weight(model)[:, ::5] = 0
    return model


KINDS = {"random": lambda model: model, "constant": constant, "zeros": with_zeros}


@pytest.fixture(scope="module")
def dense():
    """(architecture, kind of weights) -> its state and everything that can be measured on it, made once."""
    made = {}

    def get(case, kind):
        if (case, kind) not in made:
            model = KINDS[kind](build_model(case))
            state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            made[case, kind] = model, state, calibrate(model, find_targets(model), SEQUENCES, frozenset(Need))
        model, state, statistics = made[case, kind]
        model.load_state_dict(state)
        return model, statistics

    return get


def zeros_of(model):
    return {target.name: target.weight(model) == 0 for target in find_targets(model)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: "".join(way.values()))
@pytest.mark.parametrize("score", SCORE_NAMES)
@pytest.mark.parametrize("case", ARCHITECTURE_CASES)
def test_counts_are_exact(dense, case, score, way, kind):
    config = PruningConfig(sparsity=None if "pattern" in way else 0.6999, score=score, **way)
    check_counts(*dense(case, kind), config)


@pytest.mark.parametrize("sparsity", [0.0, 0.0003, 0.2001, 1 / 3, 0.5, 0.8999])
@pytest.mark.parametrize("allocation", ALLOCATION_NAMES)
def test_counts_are_exact_at_any_sparsity(dense, allocation, sparsity):
    for kind in KINDS:
        check_counts(*dense("mamba", kind), PruningConfig(sparsity=sparsity, score="magnitude", allocation=allocation))


def check_counts(model, statistics, config):
    """Prune and count."""
    targets = find_targets(model)
    before = zeros_of(model)
    others = {n: p.clone() for n, p in model.named_parameters() if n not in before}
    budget = mask_only(model, targets, build_score(config), statistics, config, config.sparsity)
    after = zeros_of(model)
    assert budget.total == round(config.sparsity * sum(target.size for target in targets))
    # Zeros that were there are the first to be chosen, so that there are no more than asked for, or only they.
    enough = all(int(before[t.name].sum()) <= 0.25 * t.size for t in targets) and config.sparsity > 0.3
    dense_before = not any(zeros.any() for zeros in before.values())
    for target, count in zip(targets, budget.counts, strict=True):
        zeros, old = after[target.name], before[target.name]
        assert (zeros | ~old).all()
        if enough or dense_before:
            assert int(zeros.sum()) == count
            check_places(zeros, count, config)
        elif config.allocation == "uniform":
            assert int(zeros.sum()) == max(count, int(old.sum()))
    assert all(torch.equal(model.get_parameter(name), value) for name, value in others.items())


def check_places(zeros, count, config):
    """The zeros of one target lie where its allocation or pattern wants them."""
    if config.n_of_m is not None:
        kept, of = config.n_of_m
        assert (zeros.view(-1, of).sum(1) == of - kept).all()
    elif config.allocation in ("uniform", "per-row"):
        assert abs(count - config.sparsity * zeros.numel()) < 1
        if config.allocation == "per-row":
            rows = zeros.sum(1)
            assert rows.max() - rows.min() <= 1


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "".join(way.values()))
@pytest.mark.parametrize("score", SCORE_NAMES)
def test_the_seed_decides_among_equals_and_two_runs_give_the_same_bytes(dense, score, way):
    hashes = []
    for seed in (0, 0, 1):
        config = PruningConfig(score=score, seed=seed, **way)
        model, statistics = dense("mamba", "constant")
        mask_only(model, find_targets(model), build_score(config), statistics, config, config.sparsity)
        hashes.append(weights_sha256(model))
    assert hashes[0] == hashes[1]
    if score in ("magnitude", "random"):  # the others see differences between weights of the same size
        assert hashes[0] != hashes[2]


def test_weights_without_a_gradient_are_not_mistaken_for_those_that_are_gone(mamba):
    in_proj, _, dt_proj, *_ = targets = find_targets(mamba)
    dt_proj.weight(mamba).zero_()  # cuts off the dt rows of x_proj, which now have no gradient
    config = PruningConfig(sparsity=0.3, allocation="uniform", score="gradient-magnitude")
    in_proj.weight(mamba).view(-1)[:200] = 0
    x_proj = targets[1]
    x_proj.weight(mamba)[24:, :10] = 0
    gone = zeros_of(mamba)[x_proj.name]
    statistics = calibrate(mamba, targets, SEQUENCES, build_score(config).needs)
    assert (statistics[x_proj.name].sums[Need.GRADIENT_ABSOLUTE][:24] == 0).all()
    budget = mask_only(mamba, targets, build_score(config), statistics, config, 0.3)
    after = zeros_of(mamba)[x_proj.name]
    assert int(after.sum()) == budget.counts[1] > int(gone.sum()) and after[gone].all()


@pytest.mark.parametrize(
    ("pattern", "component", "columns"), [("4:8", "conv1d", 4), ("1:3", "conv1d", 4), ("2:4", "D", 1)]
)
def test_patterns_that_do_not_divide_are_refused_by_name(mamba, pattern, component, columns):
    config = PruningConfig(pattern=pattern, score="magnitude", components=(component,))
    before = weights_sha256(mamba)
    message = f"pattern {pattern} does not fit backbone.layers.0.mixer.{component}.*rows have {columns} weights"
    with pytest.raises(ValueError, match=message):
        prune(mamba, None, config)
    assert weights_sha256(mamba) == before


def test_every_component_can_be_pruned(model):
    names = {"in_proj", "out_proj", "conv1d", "D", "embeddings"}
    config = PruningConfig(sparsity=0.4, score="fisher", components=tuple(names))
    targets = find_targets(model, config.components)
    statistics = calibrate(model, targets, SEQUENCES, build_score(config).needs)
    budget = mask_only(model, targets, build_score(config), statistics, config, 0.4)
    assert {target.component for target in targets} == names
    assert budget.total == round(0.4 * sum(t.size for t in targets))
    assert sum(int((t.weight(model) == 0).sum()) for t in targets) == budget.total


def test_the_report_says_what_the_model_holds(model, tokenizer, tmp_path):
    with_zeros(model)
    dense_hash, evaluation = weights_sha256(model), Evaluation(texts=(TEXT,), window=64, max_windows=2)
    zeros_before = {
        target.name: int(z.sum()) for target, z in zip(find_targets(model), zeros_of(model).values(), strict=True)
    }
    before = evaluation.run(model, tokenizer)
    config = PruningConfig(sparsity=0.61, component_sparsity={"out_proj": 0.45}, ceiling=0.8, **SMALL)
    report = prune(
        model, tokenizer, config, TEXT, evaluation, Origin(id="alice/model", revision="abc", command="the command")
    )
    facts, targets = report.sparsity, find_targets(model)

    prunable = sum(target.size for target in targets)
    weights = {name: int((p == 0).sum()) for name, p in model.named_parameters()}
    assert facts.asked == 0.61 and facts.masked == round(0.61 * prunable) == facts.prunable.zeros
    assert (facts.prunable.weights, facts.prunable.zeros_before) == (prunable, sum(zeros_before.values()))
    assert (facts.model.weights, facts.model.zeros) == (
        sum(p.numel() for p in model.parameters()),
        sum(weights.values()),
    )
    assert [(c.name, c.layer, c.weights, c.zeros_before, c.zeros) for c in facts.targets] == [
        (t.name, t.layer, t.size, zeros_before[t.name], weights[t.name]) for t in targets
    ]
    components = {count.name: count for count in facts.components}
    for target in targets:
        own = [t for t in targets if t.component == target.component]
        assert components[target.component].zeros == sum(weights[t.name] for t in own)
        for i, (part, start, stop) in enumerate(target.parts):
            rows = [t.weight(model)[start:stop] for t in own]
            assert own[0].parts[i][0] == part
            assert components[part].zeros == sum(int((r == 0).sum()) for r in rows)
            assert components[part].weights == sum(r.numel() for r in rows)
    assert components["out_proj"].zeros == round(0.45 * components["out_proj"].weights)

    assert (report.model.id, report.model.revision, report.command) == ("alice/model", "abc", "the command")
    assert report.model.weights_sha256 == dense_hash != weights_sha256(model)
    assert report.model.parameters == facts.model.weights and report.model.layers == 2
    assert [m.perplexity for m in report.before] == [m.perplexity for m in before]
    assert [m.perplexity for m in report.after] == [m.perplexity for m in evaluation.run(model, tokenizer)]
    assert (report.calibration.source, report.calibration.samples, report.calibration.length) == ("some text", 2, 12)
    assert [cost.step for cost in report.costs] == ["evaluate", "calibrate", "mask", "reconstruct", "tune"]
    report.save(tmp_path)
    assert PruningReport.load(tmp_path) == report
    assert PruningConfig.from_dict(json.loads((tmp_path / "report.json").read_text())["config"]) == config


@pytest.mark.parametrize("allocation", ALLOCATION_NAMES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_rise_to_exactly_the_final_sparsity_and_zeros_stay(mamba, tokenizer, monkeypatch, schedule, allocation):
    totals, zeros_before = [], []

    def watched(*args):
        zeros_before.append(zeros_of(mamba))
        budget = allocate(*args)
        totals.append(budget.total)
        return budget

    monkeypatch.setattr(pruning, "allocate", watched)
    fixed = {} if allocation == "per-row" else {"out_proj": 0.9}
    config = PruningConfig(
        sparsity=0.7, schedule=schedule, steps=4, allocation=allocation, component_sparsity=fixed, **SMALL
    )
    report = prune(mamba, tokenizer, config, TEXT)
    assert len(totals) == 4
    seen = list(zip(totals, [*zeros_before[1:], zeros_of(mamba)], strict=True))
    for (total, zeros), (next_total, next_zeros) in zip(seen, seen[1:], strict=False):
        assert total < next_total or schedule == "constant" and total == next_total
        assert all((next_zeros[name] | ~zeros[name]).all() for name in zeros)
    for total, zeros in seen:
        assert sum(int(z.sum()) for z in zeros.values()) == total
    assert (
        seen[-1][0]
        == report.sparsity.masked
        == report.sparsity.prunable.zeros
        == round(0.7 * report.sparsity.prunable.weights)
    )


def test_a_run_repeats_itself_and_the_batch_size_changes_nothing(tokenizer):
    hashes = set()
    for batch_size in (1, 4, 4):
        model = build_model("mamba")
        config = PruningConfig(sparsity=0.5, batch_size=batch_size, **SMALL)
        report = prune(model, tokenizer, config, TEXT)
        hashes.add((weights_sha256(model), report.calibration.tokens_sha256))
    assert len(hashes) == 1


def test_what_is_measured_is_what_will_be_saved(mamba, tokenizer):
    config = PruningConfig(sparsity=0.5, score="magnitude", reconstruct=False)
    report = prune(mamba, tokenizer, config, origin=Origin(id="m", saved_dtype=torch.bfloat16))
    assert all(torch.equal(p, p.bfloat16().float()) for p in mamba.parameters())
    assert mamba.dtype == torch.float32 and report.model.dtype == "bfloat16"
    assert report.calibration is None and report.before == report.after == ()


def test_scores_that_need_data_ask_for_it_before_anything_happens(mamba, tokenizer):
    before = weights_sha256(mamba)
    for needs in (dict(score="wanda", reconstruct=False), dict(score="magnitude", reconstruct=True)):
        with pytest.raises(ValueError, match="measured on data: give a calibration text"):
            prune(mamba, tokenizer, PruningConfig(**needs))
    with pytest.raises(ValueError, match="some text is too short"):
        prune(mamba, tokenizer, PruningConfig(calibration_length=5000), TEXT)
    assert weights_sha256(mamba) == before


def test_what_cannot_be_reached_is_said_before_anything_is_pruned(mamba, tokenizer):
    before = weights_sha256(mamba)
    with pytest.raises(ValueError, match="cannot be reached with a ceiling of 0.6 for each tensor"):
        prune(mamba, tokenizer, PruningConfig(0.7, ceiling=0.6, **SMALL), TEXT)
    with pytest.raises(ValueError, match="component 'D' has no measurable input"):
        prune(build_model("mamba2"), tokenizer, PruningConfig(score="wanda", components=("D",), **SMALL), TEXT)
    assert weights_sha256(mamba) == before


def test_fixed_components_that_leave_no_room_survive_the_roundings_on_the_way(mamba, tokenizer):
    shares = {name: 0.5 for name in ("in_proj", "x_proj", "dt_proj", "out_proj")}
    config = PruningConfig(0.5, component_sparsity=shares, reconstruct=False, score="magnitude")
    report = prune(mamba, tokenizer, config)
    assert report.sparsity.masked == report.sparsity.prunable.weights // 2


def test_a_seed_of_any_size(mamba, tokenizer):
    config = PruningConfig(0.5, seed=2**60, steps=2, **SMALL)
    assert prune(mamba, tokenizer, config, TEXT).sparsity.masked > 0


def test_statistics_go_on_from_those_of_the_step_before_in_the_same_memory(mamba, tokenizer, monkeypatch):
    places = []

    def watched(model, targets, sequences, *rest, **options):
        found = calibrate(model, targets, sequences, *rest, **options)
        places.append({(name, t.data_ptr()) for name, own in found.items() for t in own.sums.values()})
        counts.append({own.sequences for own in found.values()})
        return found

    counts = []
    monkeypatch.setattr(pruning, "calibrate", watched)
    prune(mamba, tokenizer, PruningConfig(0.5, steps=3, **SMALL | dict(calibration_samples=6)), TEXT)
    assert places[0] and places[0] == places[1] == places[2]
    assert [round(count, 6) for seen in counts for count in seen] == [2, 3.6, 4.88]
