"""Data sets of the Hub in files of JSON: the same rows as from a local file, packed or not, and no row too deep."""

from __future__ import annotations

import gzip
import json
import lzma
import signal
import subprocess
import sys

import local_hub as hubs
import pyarrow
import pytest
from pyarrow import parquet

from hf_mamba_prune.texts.sources import read_text

local_hub = hubs.local_hub


def zstandard(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACK = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard}


def jsonl(rows, **more) -> bytes:
    return "".join(json.dumps({"text": row, **more}) + "\n" for row in rows).encode()


@pytest.fixture
def hub(local_hub, monkeypatch, tmp_path):
    local_hub.attach(monkeypatch, tmp_path / "home", hubs.ALICE.token)
    return local_hub


ROWS = ("one\n", "two äöü →", "", "three")


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.jsonl.gz", "train.jsonl.zst", "train.jsonl.xz"])
def test_files_of_rows_are_read_packed_or_not(hub, name):
    content = jsonl(ROWS, number=1)
    pack = PACK.get(f".{name.rsplit('.', 1)[-1]}")
    hub.add_dataset("alice/texts", {name: pack(content) if pack else content})
    assert read_text("alice/texts", "train").documents == ROWS


CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: '*.json'\n{}---\n"
CARDS = {
    "an array": ("", json.dumps([{"text": row, "n": 1} for row in ROWS]).encode()),
    "an array of texts": ("", json.dumps(ROWS).encode()),
    "a field": ("  field: data\n", json.dumps({"data": [{"text": row} for row in ROWS]}).encode()),
    "latin": ("  encoding: latin-1\n", '{"text": "äöü"}\n'.encode("latin-1")),
}


@pytest.mark.parametrize("kind", CARDS)
def test_what_a_card_says_of_its_files_is_followed(hub, kind):
    options, content = CARDS[kind]
    hub.add_dataset("alice/texts", {"README.md": CARD.format(options).encode(), "a.json": content})
    assert read_text("alice/texts", "train").documents == (("äöü",) if kind == "latin" else ROWS)


def test_splits_of_several_files_are_read_in_their_order(hub):
    files = {f"train-{i}.jsonl": jsonl([f"text {i}"]) for i in range(3)} | {"test.jsonl": jsonl(["the test"])}
    hub.add_dataset("alice/texts", files)
    assert read_text("alice/texts", "train").documents == ("text 0", "text 1", "text 2")
    assert read_text("alice/texts::test+train", "train").documents[0] == "the test"
    with pytest.raises(ValueError, match="it has no split 'validation', but train, test"):
        read_text("alice/texts", "validation")


def test_reading_stops_before_the_rest_is_fetched(hub):
    hub.add_dataset("alice/texts", {f"train-{i}.jsonl": jsonl(["a text"] * 200) for i in range(3)})
    assert read_text("alice/texts", "train", most_characters=12).documents == ("a text",) * 2
    assert not any("train-1.jsonl" in seen.path for seen in hub.requests)


DEEP = b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n"


def schema_of_json(depth: int) -> bytes:
    """An arrow file whose schema says what `datasets` takes for features, nested deep."""
    schema = pyarrow.schema([("text", "string")], {"huggingface": "[" * depth + "]" * depth})
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pyarrow.table({"text": ["a"]}, schema=schema))
    return sink.getvalue().to_pybytes()


def deep_parquet() -> bytes:
    """A parquet file of lists in lists in lists."""
    kind = pyarrow.string()
    for _ in range(150):
        kind = pyarrow.list_(kind)
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({"text": pyarrow.array([None], kind)}), sink)
    return sink.getvalue().to_pybytes()


DEEP_FILES = {
    "train.jsonl": DEEP,
    "train.json": b"[" + DEEP + b"]",
    "train.jsonl.gz": gzip.compress(DEEP),
    "train.jsonl.zst": PACK[".zst"](DEEP),
    "train.arrow": schema_of_json(200_000),
    "train.parquet": deep_parquet(),
    "metadata.jsonl": DEEP,
}
READ = """
import sys
from hf_mamba_prune.texts.sources import read_text
for source in sys.argv[1:]:
    try:
        read_text(source, "train")
    except (ValueError, RuntimeError) as error:
        print(str(error).replace(chr(10), "<line>"))
"""


def test_rows_nested_deep_are_a_sentence_and_not_the_end_of_the_process(hub, tmp_path):
    for at, (name, content) in enumerate(DEEP_FILES.items()):
        more = {"a.png": b"picture"} if name.startswith("metadata") else {}
        hub.add_dataset(f"alice/deep{at}", {name: content, **more})
        (tmp_path / name).write_bytes(content)
    sources = [f"alice/deep{at}" for at in range(len(DEEP_FILES))] + [str(tmp_path / name) for name in DEEP_FILES]
    environment = hub.env(tmp_path / "home", hubs.ALICE.token)
    done = subprocess.run(
        [sys.executable, "-c", READ, *sources], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, signal.Signals(-done.returncode) if done.returncode < 0 else done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(sources), done.stdout
    for source, line in zip(sources, lines, strict=True):
        assert source in line and "<line>" not in line and len(line) < 500, line
