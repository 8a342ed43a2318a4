"""Tiny models of every supported architecture, a tokenizer made in code, and no way to the network."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
import torch
from local_hub import local_hub  # noqa: F401
from token_watch import capsys, no_token_in_files, pytest_runtest_makereport  # noqa: F401
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

from hf_mamba_prune import cli
from hf_mamba_prune.allocation import Budget
from hf_mamba_prune.masking import apply_masks, plan_masks

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


def run(*arguments: str) -> int:
    """The exit code of the command."""
    with pytest.raises(SystemExit) as end:
        cli.main([*arguments])
    return end.value.code or 0


def mask_only(model, targets, score, statistics, config, sparsity) -> Budget:
    """Score, allocate and mask, without reconstruction."""
    curves = {target.name: ((0.5, 0.01), (0.9, 1.0)) for target in targets}
    budget, mask_of = plan_masks(model, targets, score, statistics, config, sparsity, curves)
    apply_masks(model, targets, mask_of)
    return budget


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over all 256 bytes with a few merges: any text comes back unchanged from its tokens."""
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ġ", "a")]
    pieces = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    words = Tokenizer(BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


@pytest.fixture(params=list(ARCHITECTURE_CASES))
def case(request) -> str:
    """The name of each architecture's case, one after the other."""
    return request.param


@pytest.fixture
def model(case) -> PreTrainedModel:
    """A model of each architecture."""
    return build_model(case)


@pytest.fixture
def mamba() -> PreTrainedModel:
    """A Mamba-1 model, where one architecture is enough."""
    return build_model("mamba")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """See `build_tokenizer`; no test changes it."""
    return build_tokenizer()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums of the same numbers in the same order, on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def offline(request, monkeypatch):
    """Only this machine can be reached, except by tests that say that they need the network."""
    if request.node.get_closest_marker("network"):
        return
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def connect_here(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise ConnectionRefusedError(f"the tests are offline, but {address} was called")
        return connect(self, address)

    def look_up_here(host, *args, **options):
        if host not in ("127.0.0.1", "::1", "localhost", None):
            raise socket.gaierror(f"the tests are offline, but the address of {host!r} was asked for")
        return lookup(host, *args, **options)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(socket, "getaddrinfo", look_up_here)
