"""llama.cpp's own functions, called in its prebuilt library: write a quantized file, read one, run one on token ids.

    npm install --prefix FOLDER @node-llama-cpp/linux-x64
    pip install --target FOLDER --no-deps llama-cpp-py-sync gguf cffi pycparser

`LlamaLibrary` opens that FOLDER: the first package has the libraries, one backend for each level of processor, the
second the definitions of their functions. No tokenizer of llama.cpp's is used anywhere: models get ids.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

BINARIES = Path("node_modules/@node-llama-cpp/linux-x64/bins/linux-x64")
DEFINITIONS = Path("llama_cpp_py_sync/_cffi_bindings.py")
QUIET_BELOW = 4
"""llama.cpp's level of errors; what is said below it is left out."""

MORE_DEFINITIONS = """
void ggml_backend_load_all_from_path(const char * folder);
struct gguf_init_params { bool no_alloc; void * tensors; };
struct gguf_context * gguf_init_from_file(const char * path, struct gguf_init_params params);
void gguf_free(struct gguf_context * file);
size_t gguf_get_data_offset(const struct gguf_context * file);
int64_t gguf_get_n_tensors(const struct gguf_context * file);
const char * gguf_get_tensor_name(const struct gguf_context * file, int64_t index);
enum ggml_type gguf_get_tensor_type(const struct gguf_context * file, int64_t index);
size_t gguf_get_tensor_size(const struct gguf_context * file, int64_t index);
const char * ggml_type_name(enum ggml_type type);
"""


class LlamaLibrary:
    """The library of one folder.

    Args:
        folder: see the module.

    Raises:
        ValueError: the folder does not hold both packages, or they do not fit each other.
    """

    def __init__(self, folder: Path) -> None:
        missing = [part for part in (BINARIES, DEFINITIONS) if not (folder / part).exists()]
        if missing:
            raise ValueError(f"{folder} has no {missing[0]}: fill it as the top of {Path(__file__).name} says.")
        sys.path.append(str(folder))  # cffi, where the environment has none
        spec = importlib.util.spec_from_file_location("llama_definitions", folder / DEFINITIONS)
        definitions = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(definitions)
        self.ffi = definitions.ffi
        self.ffi.cdef(MORE_DEFINITIONS)
        binaries = folder / BINARIES
        self._base, self._ggml, self._llama = (
            self.ffi.dlopen(str(next(binaries.glob(f"{name}.*so"))))
            for name in ("libggml-base", "libggml", "libllama")
        )
        self._say = self.ffi.callback("void(enum ggml_log_level, const char *, void *)", self._hear)
        self._llama.llama_log_set(self._say, self.ffi.NULL)
        self._ggml.ggml_backend_load_all_from_path(str(binaries).encode())
        self._check()

    def _hear(self, level: int, text: Any, _: Any) -> None:
        if level == QUIET_BELOW:
            sys.stderr.write(self.ffi.string(text).decode(errors="replace"))

    def _check(self) -> None:
        """Structures of another release would be read at the wrong places, so known defaults have to be there."""
        options = self._llama.llama_context_default_params()
        rounding = self._llama.llama_model_quantize_default_params()
        found = (options.n_batch, options.n_ubatch, options.yarn_beta_fast, rounding.quantize_output_tensor)
        if found[:2] != (2048, 512) or options.type_k != 1 or not found[3] or rounding.pure:
            raise ValueError(
                f"the definitions do not fit the library (defaults read as {found}): take both of one day."
            )

    @property
    def version(self) -> str:
        """Release of llama.cpp."""
        return self.ffi.string(self._llama.llama_version()).decode()

    @property
    def processor(self) -> str:
        """Instruction sets of the backend that was chosen for this processor, as llama.cpp says them."""
        return self.ffi.string(self._llama.llama_print_system_info()).decode().strip()

    @property
    def kinds(self) -> dict[str, int]:
        """Names of file types, `Q4_K_M`, and their numbers, as far as the definitions know them."""
        named = self.ffi.typeof("enum llama_ftype").relements
        return {name.split("_MOSTLY_")[-1].removeprefix("LLAMA_FTYPE_ALL_"): number for name, number in named.items()}

    def quantize(
        self, source: Path, to: Path, kind: str, importance: dict[str, np.ndarray] | None = None, threads: int = 1
    ) -> None:
        """Write a quantized copy of a GGUF file.

        Args:
            source: GGUF file of 16 or 32 bit.
            to: the new file.
            kind: one of `kinds`.
            importance: tensor name -> mean squared input of each of its columns, (in,).
            threads: of llama.cpp.

        Raises:
            RuntimeError: llama.cpp refuses; it has said why on standard error.
        """
        options = self._llama.llama_model_quantize_default_params()
        options.ftype, options.nthread = self.kinds[kind], threads
        kept: list[Any] = []
        if importance:
            entries = self.ffi.new("struct llama_model_imatrix_data[]", len(importance) + 1)  # an empty one ends it
            for entry, (name, values) in zip(entries, importance.items(), strict=False):
                text, data = self.ffi.new("char[]", name.encode()), np.ascontiguousarray(values, np.float32)
                entry.name, entry.size = text, data.size
                entry.data = self.ffi.cast("float *", data.ctypes.data)
                kept += [text, data]
            options.imatrix = entries
            kept.append(entries)
        if self._llama.llama_model_quantize(str(source).encode(), str(to).encode(), self.ffi.addressof(options)):
            raise RuntimeError(f"llama.cpp could not quantize {source.name} to {kind}.")

    def tensors(self, path: Path) -> dict[str, tuple[str, int]]:
        """Tensor name -> (its type, its bytes)."""
        with self._opened(path) as file:
            found = {}
            for index in range(self._base.gguf_get_n_tensors(file)):
                name, kind = self._base.gguf_get_tensor_name(file, index), self._base.gguf_get_tensor_type(file, index)
                kind_name = self.ffi.string(self._base.ggml_type_name(kind)).decode().upper()
                found[self.ffi.string(name).decode()] = (kind_name, self._base.gguf_get_tensor_size(file, index))
            return found

    def digest(self, path: Path) -> str:
        """Of all weights and not of the name of their type: the same for files that llama.cpp runs alike."""
        with self._opened(path) as file:
            return hashlib.sha256(path.read_bytes()[self._base.gguf_get_data_offset(file) :]).hexdigest()[:16]

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        file = self._base.gguf_init_from_file(
            str(path).encode(), self.ffi.new("struct gguf_init_params *", [True, self.ffi.NULL])[0]
        )
        if not file:
            raise ValueError(f"{path} is not a GGUF file.")
        try:
            yield file
        finally:
            self._base.gguf_free(file)

    @contextmanager
    def running(self, path: Path, tokens: int, threads: int) -> Iterator[LlamaModel]:
        """A model in memory.

        Args:
            path: GGUF file.
            tokens: the most that are fed at once.
            threads: of llama.cpp.

        Raises:
            RuntimeError: llama.cpp cannot run the file.
        """
        model = self._llama.llama_model_load_from_file(str(path).encode(), self._llama.llama_model_default_params())
        if not model:
            raise RuntimeError(f"llama.cpp could not load {path.name}.")
        options = self._llama.llama_context_default_params()
        options.n_ctx = options.n_batch = tokens
        options.n_threads = options.n_threads_batch = threads
        context = self._llama.llama_init_from_model(model, options)
        try:
            if not context:
                raise RuntimeError(f"llama.cpp could not run {path.name}.")
            yield LlamaModel(self.ffi, self._llama, model, context, tokens)
        finally:
            if context:
                self._llama.llama_free(context)
            self._llama.llama_model_free(model)


class LlamaModel:
    """One sequence that goes on with every call."""

    def __init__(self, ffi: Any, library: Any, model: Any, context: Any, tokens: int) -> None:
        self._ffi, self._library, self._context, self._tokens = ffi, library, context, tokens
        self.vocabulary: int = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        self._position = 0

    def forget(self) -> None:
        """Begin a new sequence."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        self._position = 0

    def feed(self, ids: np.ndarray, all_logits: bool) -> np.ndarray:
        """Logits after each token of ids (l,), or only after the last, as (l or 1, vocabulary); valid until the next.

        Raises:
            RuntimeError: llama.cpp fails.
        """
        count = len(ids)
        if count > self._tokens:
            raise ValueError(f"{count} tokens at once; the model was opened for {self._tokens}.")
        batch = self._library.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for index, token in enumerate(ids):
                batch.token[index], batch.pos[index] = int(token), self._position + index
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
                batch.logits[index] = all_logits or index == count - 1
            failed = self._library.llama_decode(self._context, batch)
        finally:
            self._library.llama_batch_free(batch)
        if failed:
            raise RuntimeError(f"llama_decode answers {failed}.")
        self._position += count
        rows = count if all_logits else 1
        logits = self._library.llama_get_logits(self._context)
        return np.frombuffer(self._ffi.buffer(logits, 4 * rows * self.vocabulary), np.float32).reshape(rows, -1)
