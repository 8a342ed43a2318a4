"""Decoding speed of llama.cpp on a Mamba shape with random weights; run by packed_runtime.py in its own environment.

    PYTHON llama_decode.py D_MODEL LAYERS VOCABULARY TOKENS

PYTHON needs llama-cpp-python and gguf. Writes a GGUF file with float16 weights, quantizes it with llama.cpp's own
tool functions, and prints `NAME TOKENS_PER_SECOND` for each type.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
import time
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

THREADS = 2
STATES, KERNEL = 16, 4
TYPES = {"F16": None, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}


def write_model(path: Path, d_model: int, layers: int, vocabulary: int) -> None:
    d_inner, rank = 2 * d_model, -(-d_model // 16)
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "mamba")
    writer.add_context_length(2048)
    writer.add_embedding_length(d_model)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_block_count(layers)
    writer.add_ssm_conv_kernel(KERNEL)
    writer.add_ssm_inner_size(d_inner)
    writer.add_ssm_state_size(STATES)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("olmo")
    writer.add_token_list([f"t{i}" for i in range(vocabulary)])
    writer.add_token_types([gguf.TokenType.NORMAL] * vocabulary)
    writer.add_token_merges(["t 0"])

    def weights(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape, dtype=np.float32) * 0.02).astype(np.float16)

    writer.add_tensor("token_embd.weight", weights(vocabulary, d_model))
    writer.add_tensor("output_norm.weight", np.ones(d_model, np.float32))
    for i in range(layers):
        block = f"blk.{i}"
        writer.add_tensor(f"{block}.attn_norm.weight", np.ones(d_model, np.float32))
        writer.add_tensor(f"{block}.ssm_in.weight", weights(2 * d_inner, d_model))
        writer.add_tensor(f"{block}.ssm_conv1d.weight", weights(d_inner, KERNEL).astype(np.float32))
        writer.add_tensor(f"{block}.ssm_conv1d.bias", np.zeros(d_inner, np.float32))
        writer.add_tensor(f"{block}.ssm_x.weight", weights(rank + 2 * STATES, d_inner))
        writer.add_tensor(f"{block}.ssm_dt.weight", weights(d_inner, rank))
        writer.add_tensor(f"{block}.ssm_dt.bias", np.zeros(d_inner, np.float32))
        writer.add_tensor(f"{block}.ssm_a", -np.ones((d_inner, STATES), np.float32))
        writer.add_tensor(f"{block}.ssm_d", np.ones(d_inner, np.float32))
        writer.add_tensor(f"{block}.ssm_out.weight", weights(d_model, d_inner))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantized(path: Path, kind: int | None) -> Path:
    if kind is None:
        return path
    to = path.with_suffix(f".{kind}.gguf")
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = kind, THREADS
    failed = llama_cpp.llama_model_quantize(str(path).encode(), str(to).encode(), ctypes.byref(options))
    if failed:
        raise RuntimeError(f"llama.cpp could not quantize to {kind}")
    return to


def tokens_per_second(path: Path, vocabulary: int, tokens: int) -> float:
    model = llama_cpp.Llama(str(path), n_ctx=1024, n_threads=THREADS, n_threads_batch=THREADS, verbose=False)
    model.eval([1, 2, 3, 4, 5, 6, 7, 8])
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        for i in range(tokens):
            model.eval([(i * 7919) % vocabulary])
        best = max(best, tokens / (time.perf_counter() - started))
    return best


def main() -> None:
    d_model, layers, vocabulary, tokens = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.gguf"
        write_model(path, d_model, layers, vocabulary)
        for name, kind in TYPES.items():
            print(name, tokens_per_second(quantized(path, kind), vocabulary, tokens), flush=True)


if __name__ == "__main__":
    main()
