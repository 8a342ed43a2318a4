"""Analyse a model into a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hf_mamba_prune.config import PruningConfig
from hf_mamba_prune.files.saving import check_output, whole_folder
from hf_mamba_prune.job.choices import EvaluationChoice, ModelChoice, text_errors
from hf_mamba_prune.measure.analysis import LEVELS, Analysis, analyze
from hf_mamba_prune.publish.extras import FAILURES
from hf_mamba_prune.publish.figures import draw_analysis
from hf_mamba_prune.texts.sequences import check_ids, sample_sequences
from hf_mamba_prune.texts.sources import read_text


@dataclass(frozen=True, kw_only=True)
class AnalysisJob:
    """Analyse a model into a folder: `analysis.json` and a figure.

    Args:
        model: what to analyse; it is not changed.
        config: score, seed and calibration.
        output: the folder to write; it must not hold anything yet.
        calibration: text file or Hub data set that the scores are measured on.
        column: of the calibration's text.
        evaluation: the held text.
        levels: sparsities, each above 0 and at most 1.
    """

    model: ModelChoice
    config: PruningConfig
    output: Path
    calibration: str
    column: str | None
    evaluation: EvaluationChoice
    levels: tuple[float, ...] = LEVELS

    def run(self) -> Analysis:
        """Do it.

        Raises:
            ValueError: a wrong name, file or number, or the folder holds something.
            RuntimeError: the Hub or the disk refuses, the model is broken, or the figure cannot be drawn.
        """
        for level in self.levels:
            if not 0 < level <= 1:
                raise ValueError(f"a level is {level}; expected a sparsity above 0, at most 1.")
        check_output(self.output, overwrite=False)
        self.evaluation.check()
        self.model.check()
        config = self.config
        tokenizer = self.model.read_tokenizer()
        with text_errors(self.calibration):
            calibration = read_text(self.calibration, "train", self.column)
        evaluation = self.evaluation.read()
        evaluation.check(tokenizer)
        with self.model.open(tokenizer) as loaded:
            config = config.for_weights(loaded.model.num_parameters())
            shape = config.calibration_samples, config.calibration_length
            sequences = sample_sequences(calibration, tokenizer, *shape, config.seed)
            check_ids(sequences, loaded.model, f"the text {calibration.name}")
            found = analyze(loaded.model, tokenizer, sequences, evaluation, config, levels=self.levels)
        failure: Exception | None = None
        with whole_folder(self.output) as folder:
            found.save(folder)
            try:
                draw_analysis(found, folder)
            except FAILURES as error:
                failure = error
        if failure is not None:
            raise RuntimeError(
                f"the analysis is in {self.output}, but its figure could not be drawn ({failure})."
            ) from failure
        return found
