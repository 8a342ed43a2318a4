"""The parts of a distillation are the textbook's, and each weight switches its own part."""

from __future__ import annotations

import pytest
import torch

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.repair.divergence import divergence
from hf_mamba_prune.training.distillation import distill, square_head

GENERATOR = torch.Generator().manual_seed(3)
STUDENT, TEACHER = torch.randn(2, 2, 6, 11, generator=GENERATOR)
LABELS = torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 1, -100, -100]])
HIDDEN = tuple(torch.randn(2, 2, 6, 4, generator=GENERATOR))


def config(**options):
    return PruningConfig(**{"ce_weight": 0.0, "kl_weight": 0.0, "hidden_weight": 0.0} | options)


def run(options, count=None, teacher=TEACHER, hidden=HIDDEN):
    return distill(torch.tensor(2.5), (STUDENT, HIDDEN), (teacher, hidden), LABELS, config(**options), count)


def test_the_divergence_is_that_of_the_definition():
    p, q = TEACHER[0].softmax(-1), STUDENT[0].softmax(-1)
    torch.testing.assert_close(divergence(STUDENT[0], TEACHER[0]), (p * (p / q).log()).sum())
    p, q = (TEACHER[0] / 2).softmax(-1), (STUDENT[0] / 2).softmax(-1)
    torch.testing.assert_close(divergence(STUDENT[0], TEACHER[0], 2.0), 4 * (p * (p / q).log()).sum())
    assert divergence(TEACHER[0], TEACHER[0]).abs() < 1e-5


def test_only_predicted_labels_count():
    """Position t predicts label t + 1: eight labels of these two sequences have a position before them."""
    rows = [(0, t) for t in range(5)] + [(1, t) for t in range(3)]
    wanted = sum(divergence(STUDENT[b, t][None], TEACHER[b, t][None]) for b, t in rows)
    torch.testing.assert_close(run({"kl_weight": 1.0}), wanted / 8)
    torch.testing.assert_close(run({"kl_weight": 3.0}, count=16), 3 * wanted / 16)


def test_weights_switch_the_parts():
    parts = [run({name: 1.0}) for name in ("ce_weight", "kl_weight", "hidden_weight")]
    assert parts[0] == 2.5 and parts[1] > 0 and parts[2] == 0  # the states are the teacher's own
    both = run({"ce_weight": 0.5, "kl_weight": 2.0, "hidden_weight": 0.25}, hidden=tuple(2 * h for h in HIDDEN))
    # Half of the teacher's states is an error of a quarter of their square.
    torch.testing.assert_close(both, 0.5 * parts[0] + 2 * parts[1] + 0.25 * torch.tensor(0.25))


def test_square_head_ignores_what_is_padded():
    wrong = HIDDEN[0].clone()
    wrong[1, 4:] = 100.0
    assert square_head((wrong,), (HIDDEN[0],), LABELS) == 0
    wrong[0, 0] += 1
    assert square_head((wrong,), (HIDDEN[0],), LABELS) > 0


def test_gradients_go_to_the_student_only():
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    distill(None, (student, ()), (teacher, ()), LABELS, config(kl_weight=1.0)).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None
    # d KL / d student logits is (softmax(student) - softmax(teacher)) / count.
    wanted = (STUDENT[0, 0].softmax(-1) - TEACHER[0, 0].softmax(-1)) / 8
    torch.testing.assert_close(student.grad[0, 0], wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{"ce_weight": 0, "kl_weight": 0, "hidden_weight": 0}, {"kl_weight": -1}, {"temperature": 0.0}]
)
def test_wrong_weights_are_refused(options):
    with pytest.raises(ValueError, match="ce_weight, kl_weight, hidden_weight are|temperature is"):
        PruningConfig(**options)


def test_the_gradient_of_the_divergence_is_autograd_s():
    """Of the definition; rows that do not count have none, whatever stands in them."""
    counts = torch.tensor([True, True, False, True, True, True])
    own, plain = (STUDENT[0].clone().requires_grad_() for _ in range(2))
    with torch.no_grad():
        own[2] = torch.nan
    (3 * divergence(own, TEACHER[0], 2.0, counts)).backward()
    p, q = (TEACHER[0][counts] / 2).softmax(-1), (plain[counts] / 2).softmax(-1)
    (3 * 4 * (p * (p / q).log()).sum()).backward()
    torch.testing.assert_close(own.grad, plain.grad)
