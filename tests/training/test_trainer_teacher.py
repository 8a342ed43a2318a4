"""A trainer with a teacher: what it learns, and that batches and accumulation agree."""

from __future__ import annotations

import torch
from tiny_models import build_model
from training_cases import DATA, TOKENS, arguments, check_final, config, share_of, zeros_of

from hf_mamba_prune import PruningTrainer, find_targets
from hf_mamba_prune.files.loading import weights_sha256
from hf_mamba_prune.repair.divergence import divergence


def test_label_smoothing_goes_with_a_teacher(mamba, tmp_path):
    args = arguments(tmp_path, label_smoothing_factor=0.1)
    PruningTrainer(mamba, args, train_dataset=DATA, pruning_config=config(), teacher=build_model("mamba")).train()
    check_final(mamba)


def test_distillation_learns_the_teacher_and_not_the_labels(tmp_path):
    teacher = build_model("mamba")
    frozen = weights_sha256(teacher)
    distances = []
    for steps, weights in ((1, {}), (60, {}), (60, {"kl_weight": 0.0, "ce_weight": 1.0})):
        student = build_model("mamba")
        for target in find_targets(student):
            target.weight(student)[:, ::4] = 0
        zeros, total = share_of(zeros_of(student))
        PruningTrainer(
            student, arguments(tmp_path, max_steps=steps, learning_rate=5e-3), train_dataset=DATA, teacher=teacher,
            pruning_config=config(sparsity=zeros / total, steps=1, end=1.0, **weights),
        ).train()  # fmt: skip
        assert share_of(zeros_of(student))[0] == zeros
        with torch.no_grad():
            distances.append(divergence(student(TOKENS).logits[0], teacher(TOKENS).logits[0]).item())
    assert distances[1] < 0.7 * distances[0] < 0.7 * distances[2] and weights_sha256(teacher) == frozen


def test_accumulated_batches_give_the_loss_of_one(tmp_path):
    """A step of four sequences is the same step in one batch or in four, with a teacher too."""
    hashes = []
    for size, accumulate in ((4, 1), (1, 4)):
        student, teacher = build_model("mamba"), build_model("mamba")
        for target in find_targets(student):
            target.weight(student)[:, ::3] = 0
        args = arguments(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=accumulate, max_steps=2,
            learning_rate=1e-3, optim="sgd",
        )  # fmt: skip
        share = share_of(zeros_of(student))
        pruning = config(sparsity=share[0] / share[1], ce_weight=0.5, steps=1)
        PruningTrainer(student, args, train_dataset=DATA, teacher=teacher, pruning_config=pruning).train()
        hashes.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    torch.testing.assert_close(hashes[0], hashes[1], rtol=1e-4, atol=1e-6)
