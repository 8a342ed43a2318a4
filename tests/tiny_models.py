"""Tiny models of every supported architecture, and a tokenizer made in code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    FalconMambaConfig,
    Mamba2Config,
    MambaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 264
_SHARED = dict(vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=2, bos_token_id=0, eos_token_id=0)
_SHARED |= dict(pad_token_id=0, conv_kernel=4, expand=2)
_MAMBA1 = _SHARED | dict(state_size=4, time_step_rank=24)
_MAMBA2 = _SHARED | dict(state_size=4, num_heads=4, head_dim=12, n_groups=2, chunk_size=8)

# Every row of the default weights has a length that 3, 4 and 8 divide, so that every pattern of the tests fits.
ARCHITECTURE_CASES: dict[str, Callable] = {
    "mamba": lambda: MambaConfig(**_MAMBA1),
    "mamba2": lambda: Mamba2Config(**_MAMBA2),
    "mamba2-tied": lambda: Mamba2Config(**_MAMBA2, tie_word_embeddings=True),
    "falcon_mamba": lambda: FalconMambaConfig(**_MAMBA1),
}


def build_model(case: str, seed: int = 0) -> PreTrainedModel:
    """A model with random weights, none of them zero, in evaluation mode.

    Norms, biases and D are random too: where they are 1 or 0, as after transformers' own initialisation, a wrong tap
    can show the right numbers by luck.
    """
    config = ARCHITECTURE_CASES[case]()
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            draw = torch.randn(weight.shape, generator=generator)
            if name.endswith("A_log"):
                weight.copy_(draw.abs())
            elif name.endswith(("norm.weight", "norm_f.weight", ".D")):
                weight.copy_(1 + 0.5 * draw)
            elif name.endswith(("bias", "dt_bias")):
                weight.copy_(0.5 * draw)
            else:
                weight.copy_(draw / weight[0].numel() ** 0.5)
            assert (weight != 0).all()
    return model


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over all 256 bytes with a few merges: any text comes back unchanged from its tokens."""
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ġ", "a")]
    pieces = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    words = Tokenizer(BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
