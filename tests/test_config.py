"""A config holds only what can be run, and comes back from JSON, a folder and the Hub as it was."""

from __future__ import annotations

import dataclasses
import json
import math

import local_hub as hubs
import pytest

from hf_mamba_prune.config import CONFIG_NAME, PruningConfig

EVERY_FIELD = dict(
    sparsity=0.7,
    code_bits=3,
    pattern="unstructured",
    score="fisher",
    allocation="per-row",
    alpha=0.5,
    gradient="signed",
    ceiling=0.9,
    components=("in_proj", "out_proj"),
    component_sparsity={"out_proj": 0.5},
    schedule="linear",
    steps=3,
    reconstruct=False,
    damping=0.05,
    calibration_samples=5,
    calibration_bf16=True,
    calibration_length=64,
    batch_size=2,
    start=0.1,
    end=0.9,
    measure="calibration",
    decay=0.5,
    regrow=0.2,
    ce_weight=0.3,
    kl_weight=0.6,
    hidden_weight=0.1,
    temperature=2.0,
    seed=11,
)


def test_defaults():
    config = PruningConfig()
    assert (config.sparsity, config.score, config.allocation) == (0.5, "fisher", "global")
    assert (config.n_of_m, config.steps, config.components, config.component_sparsity) == (None, 8, (), {})
    assert config.reconstruct and PruningConfig(pattern="2:4").steps == 1
    assert [PruningConfig(s).ceiling for s in (0.7, 0.0)] == pytest.approx([0.9, 2 / 3])
    assert PruningConfig(0.7, ceiling=0.95).ceiling == 0.95


def test_every_field_survives_json_and_a_folder(tmp_path):
    config = PruningConfig(**EVERY_FIELD)
    assert set(EVERY_FIELD) | {"bits", "size", "zeros"} == {f.name for f in dataclasses.fields(PruningConfig)}
    assert {name: getattr(config, name) for name in EVERY_FIELD} == EVERY_FIELD
    assert PruningConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config.save_pretrained(tmp_path / "new" / "folder")
    assert PruningConfig.from_pretrained(tmp_path / "new" / "folder") == config
    assert PruningConfig.from_pretrained(str(tmp_path / "new" / "folder")) == config


@pytest.mark.parametrize("budget", [{"bits": 2.5}, {"bits": 3}, {"size": 60_000_000}])
def test_a_budget_prunes_nothing_by_itself_and_survives_json(budget):
    config = PruningConfig(**budget)
    assert config.rounds and config.sparsity == 0
    assert PruningConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": 2.5, "size": 100}, "bits and size are two answers"),
        ({"zeros": False}, "zeros is False, which is about what bits or size may choose"),
        ({"zeros": False, "code_bits": 2}, "zeros is False"),
        ({"bits": 2.5, "code_bits": 2}, "bits and code_bits are two answers"),
        ({"bits": 0.1}, "bits is 0.1; expected 0.3 to 6.5"),
        ({"bits": 12.0}, "bits is 12.0; expected 0.3 to 6.5"),
        ({"bits": "2"}, "bits is '2'"),
        ({"bits": math.nan}, "bits is nan"),
        ({"code_bits": 5}, "code_bits is 5; expected 1 to 4"),
        ({"code_bits": 2.0}, "code_bits is 2.0"),
        ({"size": 0}, "size is 0"),
        ({"size": True}, "size is True"),
        ({"bits": 2.5, "sparsity": 0.5}, "leave out one of them"),
        ({"size": 10**7, "pattern": "2:4"}, "leave out one of them"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(**values)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "1:3", "3:7"])
def test_a_pattern_sets_sparsity_and_allocation_and_survives_json(pattern):
    config = PruningConfig(pattern=pattern)
    kept, of = map(int, pattern.split(":"))
    assert config.n_of_m == (kept, of) and config.allocation == "uniform"
    assert math.isclose(config.sparsity, 1 - kept / of)
    assert PruningConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert PruningConfig(pattern=pattern, sparsity=1 - kept / of, allocation="uniform") == config


def test_configs_are_frozen_and_do_not_share_what_was_given():
    shares = {"out_proj": 0.5}
    config = PruningConfig(component_sparsity=shares)
    shares["out_proj"] = 0.9
    assert config.component_sparsity == {"out_proj": 0.5}
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.sparsity = 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(sparsity=-0.1), r"sparsity is -0.1; expected a number from 0 up to, but not including, 1"),
        (dict(sparsity=1), "sparsity is 1; expected"),
        (dict(sparsity=1.5), "sparsity is 1.5; expected"),
        (dict(sparsity=math.nan), "sparsity is nan; expected"),
        (dict(sparsity=True), "sparsity is True; expected"),
        (dict(sparsity="0.5"), "sparsity is 0.5; expected a number"),
        (dict(component_sparsity={"out_proj": 1.0}), "component_sparsity of out_proj is 1.0; expected"),
        (dict(component_sparsity={"out_proj": math.nan}), "component_sparsity of out_proj is nan; expected"),
        (dict(score="magnitud"), r"unknown score 'magnitud'. Did you mean 'magnitude'\? Known: magnitude, gradient-"),
        (dict(score="gradient_magnitude"), "Did you mean 'gradient-magnitude'"),
        (dict(score="xyzzy"), r"unknown score 'xyzzy'\. Known: "),
        (dict(allocation="gobal"), r"unknown allocation 'gobal'. Did you mean 'global'\?"),
        (dict(schedule="cube"), r"unknown schedule 'cube'. Did you mean 'cubic'\?"),
        (dict(gradient="absolut"), r"unknown gradient 'absolut'. Did you mean 'absolute'\?"),
        (dict(ceiling=0), "ceiling is 0; expected 0 < ceiling <= 1"),
        (dict(ceiling=1.01), "ceiling is 1.01; expected"),
        (dict(ceiling=math.nan), "ceiling is nan; expected"),
        (dict(alpha=-1), "alpha is -1; expected a finite number, 0 or more"),
        (dict(alpha=math.inf), "alpha is inf; expected"),
        (dict(alpha="1"), "alpha is '1'; expected a number"),
        (dict(damping=None), "damping is None; expected a number"),
        (dict(ceiling="0.9"), "ceiling is '0.9'; expected a number"),
        (dict(pattern=24), "pattern is 24; expected str"),
        (dict(components="in_proj"), "components is 'in_proj'; expected a list"),
        (dict(component_sparsity=None), "component_sparsity is None; expected Mapping"),
        (dict(reconstruct="false"), "reconstruct is 'false'; expected bool"),
        (dict(seed=1.5), "seed is 1.5; expected int"),
        (dict(damping=-1), "damping is -1; expected a finite number, 0 or more"),
        (dict(steps=0), "steps is 0; expected a whole number of at least 1"),
        (dict(steps=1.5), "steps is 1.5; expected a whole number"),
        (dict(calibration_samples=0), "calibration_samples is 0"),
        (dict(calibration_length=1), "calibration_length is 1; expected a whole number of at least 2"),
        (dict(batch_size=True), "batch_size is True"),
        (dict(pattern="2-4"), "pattern is '2-4'; expected 'unstructured' or N:M with 0 < N < M, like '2:4'"),
        (dict(pattern="4:4"), "pattern is '4:4'; expected"),
        (dict(pattern="0:4"), "pattern is '0:4'; expected"),
        (dict(pattern="2:4", sparsity=0.7), "pattern 2:4 means a sparsity of 0.5, but sparsity is 0.7"),
        (dict(pattern="2:4", allocation="global"), "only allocation 'uniform' goes with it"),
        (dict(pattern="2:4", allocation="per-row"), "only allocation 'uniform' goes with it"),
        (dict(pattern="2:4", component_sparsity={"out_proj": 0.5}), "only allocation 'uniform' goes with it"),
    ],
)
def test_what_cannot_be_run_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(**values)


def test_unknown_keys_are_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"unknown key of a pruning config 'sparsty'. Did you mean 'sparsity'\?"):
        PruningConfig.from_dict({"sparsty": 0.5})


def test_a_folder_that_holds_no_config(tmp_path):
    with pytest.raises(ValueError, match=f"holds no {CONFIG_NAME}: it was not pruned by hf-mamba-prune"):
        PruningConfig.from_pretrained(tmp_path)
    for text, message in (("{", "is not JSON"), ("[1]", "holds a list; expected an object")):
        (tmp_path / CONFIG_NAME).write_text(text)
        with pytest.raises(ValueError, match=message):
            PruningConfig.from_pretrained(tmp_path)


def test_from_a_hub_repository_and_revision(local_hub, monkeypatch, tmp_path):
    local_hub.attach(monkeypatch, tmp_path / "home", hubs.ALICE.token)
    old, new = PruningConfig(sparsity=0.3), PruningConfig(**EVERY_FIELD)
    first = local_hub.add_model("alice/pruned", {CONFIG_NAME: json.dumps(old.to_dict()).encode()})
    local_hub.add_model("alice/pruned", {CONFIG_NAME: json.dumps(new.to_dict()).encode()})
    assert PruningConfig.from_pretrained("alice/pruned") == new
    assert PruningConfig.from_pretrained("alice/pruned", revision=first.id) == old


def test_a_hub_repository_that_holds_no_config(local_hub, monkeypatch, tmp_path):
    local_hub.attach(monkeypatch, tmp_path / "home", hubs.ALICE.token)
    local_hub.add_model("alice/dense", {"config.json": b"{}"})
    with pytest.raises(ValueError, match=f"alice/dense holds no {CONFIG_NAME}: it was not pruned by hf-mamba-prune"):
        PruningConfig.from_pretrained("alice/dense")


def test_a_big_model_is_calibrated_on_half_as_many_sequences_unless_told():
    config = PruningConfig(bits=2.5)
    assert config.for_weights(3_676_928).calibration_samples == 128
    assert config.for_weights(129_135_360) == PruningConfig(bits=2.5, calibration_samples=64)
    assert PruningConfig(calibration_samples=100).for_weights(129_135_360).calibration_samples == 100
