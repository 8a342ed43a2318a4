"""Training after pruning, or pruning in training, through the same call and the same command as everything else."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tiny_models import ARCHITECTURE_CASES, build_model

from hf_mamba_prune import Evaluation, PruningConfig, PruningReport, Recovery, TextSource, find_targets, prune
from hf_mamba_prune.command.cli import main
from hf_mamba_prune.recipes import RECIPES

TEXT = TextSource("some text", tuple(f" The thing number {i} in the other .\n" for i in range(60)))
SMALL = dict(calibration_samples=2, calibration_length=12)
TRAINING = dict(text=TEXT, steps=12, batch_size=2, length=16, learning_rate=5e-3)


def zeros_of(model):
    return sum(int((t.weight(model) == 0).sum()) for t in find_targets(model))


@pytest.mark.parametrize(
    ("case", "distill"),
    [
        *((case, False) for case in ARCHITECTURE_CASES),
        *(pytest.param(case, True, marks=[pytest.mark.slow] * (case != "mamba")) for case in ARCHITECTURE_CASES),
    ],
)
def test_recovery_keeps_the_masks_and_is_in_the_report(case, tokenizer, tmp_path, distill):
    evaluation = Evaluation(texts=(TEXT,), window=64)
    results = []
    rate = 5e-4 if distill else 5e-3  # a random model is near its teacher already
    for recovery in (None, Recovery(**TRAINING | dict(learning_rate=rate), distill=distill)):
        model = build_model(case)
        config = PruningConfig(0.6, steps=2, **SMALL)
        results.append(prune(model, tokenizer, config, TEXT, evaluation, recovery=recovery))
        assert zeros_of(model) == round(0.6 * sum(t.size for t in find_targets(model))) == results[-1].sparsity.masked
        assert not model.training
    plain, trained = results
    assert plain.recovery is None and trained.recovery.distilled == distill
    assert (trained.recovery.tokens, trained.recovery.steps, trained.recovery.text) == (12 * 2 * 16, 12, "some text")
    assert trained.recovery.last_loss < trained.recovery.first_loss
    assert [cost.step for cost in trained.costs] == ["evaluate", "calibrate", "mask", "reconstruct", "tune", "recover"]
    if not distill:  # a random model has nothing to teach, but the text can be learned
        assert trained.after[0].perplexity < plain.after[0].perplexity
    trained.save(tmp_path)
    assert PruningReport.load(tmp_path) == trained


def test_the_papers_way_prunes_in_training(mamba, tokenizer):
    config = PruningConfig(0.6, score="gradient-magnitude", steps=3, reconstruct=False, **SMALL)
    recovery = Recovery(**TRAINING, distill=False, gradual=True)
    report = prune(mamba, tokenizer, config, TEXT, recovery=recovery)
    wanted = round(0.6 * sum(t.size for t in find_targets(mamba)))
    assert zeros_of(mamba) == report.sparsity.masked == wanted and report.recovery.gradual
    assert report.calibration is None and [cost.step for cost in report.costs] == ["evaluate", "recover"]
    with pytest.raises(ValueError, match="60.0% sparse already: there is nothing to prune"):
        prune(mamba, tokenizer, config, TEXT, recovery=recovery)


def test_bfloat16_is_trained_in_float32_and_saved_as_it_was(tokenizer):
    model = build_model("mamba").to(torch.bfloat16)
    prune(model, tokenizer, PruningConfig(0.5, steps=1, **SMALL), TEXT, recovery=Recovery(**TRAINING))
    assert zeros_of(model) == round(0.5 * sum(t.size for t in find_targets(model)))
    assert all(torch.equal(p, p.bfloat16().to(p.dtype)) for p in model.parameters())


def test_autocast_changes_the_products_and_neither_weights_nor_zeros(tokenizer):
    found = []
    for bf16 in (False, True):
        model = build_model("mamba")
        report = prune(
            model, tokenizer, PruningConfig(0.5, steps=1, **SMALL), TEXT, recovery=Recovery(**TRAINING, bf16=bf16)
        )
        assert zeros_of(model) == round(0.5 * sum(t.size for t in find_targets(model)))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        again, ids = build_model("mamba").eval(), torch.arange(20)[None]
        again.load_state_dict(model.state_dict())
        assert torch.equal(model(ids).logits, again(ids).logits)  # what comes back runs in float32
        found.append(report.recovery.first_loss)
    assert found[0] != found[1] and found[1] == pytest.approx(found[0], rel=0.02)


@pytest.mark.parametrize("seed", [0, -1, 2**60])
def test_a_single_step_trains_with_a_seed_of_any_size(mamba, tokenizer, seed):
    config = PruningConfig(0.5, score="magnitude", reconstruct=False, steps=1, seed=seed)
    before = copy.deepcopy(mamba.state_dict())
    prune(mamba, tokenizer, config, recovery=Recovery(**TRAINING | dict(steps=1), distill=False))
    live = [(before[name] != p)[p != 0] for name, p in mamba.named_parameters()]
    assert torch.cat([changed.flatten() for changed in live]).float().mean() > 0.5


def test_pruning_in_training_can_measure_on_the_calibration_text(mamba, tokenizer):
    config = PruningConfig(0.6, score="wanda", allocation="per-row", measure="calibration", steps=3, **SMALL)
    report = prune(mamba, tokenizer, config, TEXT, recovery=Recovery(**TRAINING, distill=False, gradual=True))
    wanted = round(0.6 * sum(t.size for t in find_targets(mamba)))
    assert zeros_of(mamba) == wanted and report.calibration.source == "some text"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(steps=0), "steps is 0; expected at least 1"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(length=1), "length is 1; expected at least 2"),
        (dict(learning_rate=0.0), "learning_rate is 0.0; expected 0 < learning_rate < 1"),
    ],
)
def test_wrong_numbers_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Recovery(**TRAINING | values)


@pytest.mark.parametrize("recipe", ["standard", "paper"])
def test_the_command_trains(tmp_path, mamba, tokenizer, recipe, capsys):
    mamba.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("".join(TEXT.documents) * 40)
    output = tmp_path / "out"
    command = [
        str(tmp_path / "model"),
        "--sparsity",
        "0.5",
        "--recipe",
        recipe,
        "--recover-steps",
        "9",
        "--steps",
        "3",
    ]
    command += ["--recover-batch", "1", "--calibration", str(text), "--no-eval", "--output", str(output)]
    command += ["--calibration-samples", "2", "--calibration-length", "16", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    report = json.loads((output / "report.json").read_text())
    assert json.loads(capsys.readouterr().out) == report  # and nothing else on standard output
    assert report["recovery"]["gradual"] == (recipe == "paper") and report["recovery"]["steps"] == 9
    assert report["config"]["score"] == ("gradient-magnitude" if recipe == "paper" else "fisher")
    assert report["recovery"]["distilled"] == (recipe == "standard")
    assert {name: report["config"][name] for name in RECIPES[recipe].config} == dict(RECIPES[recipe].config)


def test_what_takes_too_long_is_refused_with_the_flag_that_helps(tmp_path, mamba, tokenizer, capsys):
    mamba.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    command = [str(tmp_path / "model"), "--output", str(tmp_path / "out"), "--max-hours", "1e-9"]
    for options, flag in (([], "fewer --steps or"), (["--recipe", "standard"], "fewer --recover-steps")):
        with pytest.raises(SystemExit) as ended:
            main([*command, *options])
        assert ended.value.code == 2 and not (tmp_path / "out").exists()
        error = capsys.readouterr().err
        assert flag in error and "more than the limit of" in error and "raise --max-hours (now 1e-09)" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "standart"], "unknown recipe 'standart'. Did you mean 'standard'"),
        (["--recipe", "paper", "--recover-steps", "0"], "recipe needs at least 1"),
        (["--recover-steps", "-3"], "recipe needs at least 0"),
    ],
)
def test_wrong_recipes_are_refused(capsys, options, message):
    with pytest.raises(SystemExit) as ended:
        main(["some/model", *options])
    assert ended.value.code == 2 and message in capsys.readouterr().err
