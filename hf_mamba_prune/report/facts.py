"""What is known of a run, part by part: plain values, as `report.json` holds them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LanguageMetrics:
    """Quality on one text.

    Args:
        text: its name.
        perplexity: per predicted token.
        bits_per_byte: of the original text.
        word_perplexity: per word, split at white space.
        tokens: how many were predicted.
        window: tokens the model saw at once.
        stride: tokens from one window to the next.
        dtype: of the weights during the evaluation.
        tokens_per_second: of this evaluation, on the machine that the report names.
    """

    text: str
    perplexity: float
    bits_per_byte: float
    word_perplexity: float
    tokens: int
    window: int
    stride: int
    dtype: str
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Which model was pruned.

    Args:
        id: Hub id or folder name, as given.
        revision: commit of the Hub repository, None for a folder.
        model_type: of the transformers config.
        parameters: number of weights, tied ones once.
        layers: number of blocks.
        dtype: in which it is saved.
        weights_sha256: hash over all weights before pruning.
        license: that its card names.
        language: those that its card names.
        from_hub: whether the Hub has it, where no commit is known.
        auto_class: of transformers that loads it.
        pipeline: the Hub's name of what it does.
    """

    id: str
    revision: str | None
    model_type: str
    parameters: int
    layers: int
    dtype: str
    weights_sha256: str
    license: str | None = None
    language: tuple[str, ...] = ()
    from_hub: bool = False
    auto_class: str = "AutoModelForCausalLM"
    pipeline: str = "text-generation"


@dataclass(frozen=True, kw_only=True)
class Count:
    """Zeros among some weights.

    Args:
        name: of a component, a part of one, or a state-dict name.
        layer: index of the block; None outside the blocks and for sums over blocks.
        weights: how many.
        zeros_before: zeros before this run.
        zeros: zeros after it.
    """

    name: str
    layer: int | None
    weights: int
    zeros_before: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Share of zeros, 0 to 1."""
        return self.zeros / self.weights if self.weights else 0.0


@dataclass(frozen=True, kw_only=True)
class SparsityFacts:
    """What was asked for and what came of it.

    Args:
        asked: sparsity of the prunable weights that the config asks for.
        masked: how many weights the masks set to zero, exactly what was asked for.
        prunable: zeros among the prunable weights; more than `masked` when there were more before.
        model: zeros among all weights of the model.
        components: per component and part of a component, summed over the blocks.
        targets: per weight, with its block.
        at_ceiling: weights that the global ranking would have emptied further than the ceiling allows.
    """

    asked: float
    masked: int
    prunable: Count
    model: Count
    components: tuple[Count, ...]
    targets: tuple[Count, ...]
    at_ceiling: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WidthFacts:
    """Codes of one component.

    Args:
        name: of the component.
        weights: of all its blocks.
        bits: per weight, scales and all.
        rows: how many have codes of 0 bits, of 1, and so on.
        zeros: share of the weights that masks hold.
    """

    name: str
    weights: int
    bits: float
    rows: tuple[int, ...]
    zeros: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RoundingFacts:
    """To how few bits weights were rounded.

    Args:
        bits: that a projection weight takes in a file: codes, masks, scales, tables and all.
        embedding_bits: the same of embeddings and head; None where they stay as they are.
        expected_rise: of the loss in nats per token, as the curves of all rows foretold it, those of embeddings and
            head too; None where every row got the same width, so that none were measured.
        components: of the projections.
        memory_bits: that a projection weight takes while it is computed on, where nothing is deflated.
    """

    bits: float
    embedding_bits: float | None
    expected_rise: float | None
    components: tuple[WidthFacts, ...]
    memory_bits: float | None = None


@dataclass(frozen=True, kw_only=True)
class CalibrationFacts:
    """Which data the scores were measured on.

    Args:
        source: name of the text.
        samples, length: sequences, and tokens of each.
        tokens_sha256: hash of their token ids.
        learned: sequences of the same draw that what is left learned from, the first ones like those.
    """

    source: str
    samples: int
    length: int
    tokens_sha256: str
    learned: int = 0


@dataclass(frozen=True, kw_only=True)
class RepairFacts:
    """What reconstruction did for one weight.

    Args:
        name: state-dict name.
        before: share of the output's energy that the mask alone loses, on the inputs that it was reconstructed on.
        after: the same with the reconstructed weights.
        iterations: of the solver.
    """

    name: str
    before: float
    after: float
    iterations: int


@dataclass(frozen=True, kw_only=True)
class RecoveryFacts:
    """How the model was trained after pruning, or while it was pruned.

    Args:
        text: what it was trained on.
        steps: of the optimizer.
        tokens: that it saw.
        learning_rate: its peak.
        distilled: from the dense model; otherwise by cross-entropy.
        gradual: pruned in training instead of before it.
        first_loss: mean of the first twentieth of the steps.
        last_loss: mean of the last one.
    """

    text: str
    steps: int
    tokens: int
    learning_rate: float
    distilled: bool
    gradual: bool
    first_loss: float
    last_loss: float


@dataclass(frozen=True, kw_only=True)
class TaskMetrics:
    """One metric of a model on one task.

    Args:
        task: its name, or that of its file without the ending.
        metric: `acc`, `acc_norm`, `perplexity` ...
        value: accuracies from 0 to 1.
        standard_error: of an accuracy; None for others.
        examples: measured.
        higher_is_better: or lower.
    """

    task: str
    metric: str
    value: float
    standard_error: float | None
    examples: int
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class SpeedFacts:
    """What a model costs to run on the CPU that the report names.

    Args:
        name: dense or packed, and what ran it.
        values: type of its weights.
        kernels: instruction set of the native kernels, `none` without them.
        threads: used.
        file_bytes: size of its weights on disk.
        memory_bytes: growth of the process's resident memory by loading it and decoding.
        prompt_tokens: of the prefill.
        prefill_tokens_per_second: of one sequence.
        new_tokens: of the decoding.
        decode_tokens_per_second: of one sequence, through `generate`.
    """

    name: str
    values: str
    kernels: str
    threads: int
    file_bytes: int
    memory_bytes: int
    prompt_tokens: int
    prefill_tokens_per_second: float
    new_tokens: int
    decode_tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Wall-clock seconds of one step and the highest resident memory of the process during it, in bytes."""

    step: str
    seconds: float
    peak_bytes: int
