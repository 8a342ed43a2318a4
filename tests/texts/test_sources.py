"""Text from every kind of file and from the Hub, and one clear line for each that cannot be read."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import socket

import datasets
import local_hub as hubs
import pyarrow
import pytest
from pyarrow import parquet

from hf_mamba_prune.texts.sources import TextSource, read_text

ROWS = ("one\n", "two lines \u00e4\u00f6\u00fc \u2192\n", "", " = Three = \n", "last without newline")


def zstandard(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACK = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard}
# A data set's text as WikiText's raw file has it, and as the Hub's rows hold it.
RAW = " \n = Robert = \n \n Robert is an actor . \n He had a role . \n \n"
WIKI_ROWS = ("", " = Robert = \n", "", " Robert is an actor . \n", " He had a role . \n", "")


def table(**columns):
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def jsonl(rows, **more):
    return "".join(json.dumps({"text": row, **more}) + "\n" for row in rows).encode()


CONTENTS = {
    ".txt": "".join(row or "\n" for row in ROWS).encode(),
    ".raw": "".join(row or " \n" for row in ROWS).encode(),
    ".jsonl": jsonl(ROWS, title="t"),
    ".json": jsonl(ROWS),
    ".parquet": table(text=list(ROWS), title=["t"] * len(ROWS), number=list(range(len(ROWS)))),
}


@pytest.mark.parametrize("pack", ["", *PACK])
@pytest.mark.parametrize("kind", CONTENTS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind, pack):
    path = tmp_path / f"text{kind}{pack}"
    path.write_bytes(PACK[pack](CONTENTS[kind]) if pack else CONTENTS[kind])
    source = read_text(str(path), "train")
    assert source == TextSource(path.name, ROWS)
    assert source.characters == sum(map(len, ROWS))


def test_the_lines_of_a_raw_file_are_the_rows_of_the_data_set(tmp_path):
    (tmp_path / "wiki.test.raw").write_text(RAW)
    source = read_text(str(tmp_path / "wiki.test.raw"), "test")
    assert source.documents == WIKI_ROWS
    assert source.joined() == "\n\n".join(WIKI_ROWS)


def test_only_newlines_end_a_line(tmp_path):
    rows = ("a\r\n", "b\x0c\u2028c\u0085d\n", "\x1ce\n")
    (tmp_path / "odd.txt").write_bytes("".join(rows).encode())
    assert read_text(str(tmp_path / "odd.txt"), "train").documents == rows


def test_reading_stops_at_the_limit(tmp_path):
    (tmp_path / "many.txt").write_text("12345678\n" * 100)
    assert len(read_text(str(tmp_path / "many.txt"), "train", most_characters=40).documents) == 5


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", b'{"body": "one", "title": "t"}\n\n{"body": "two", "title": "t"}\n'),
     ("a.parquet", table(body=["one", "two"], title=["t", "t"]))],
)  # fmt: skip
def test_the_column_can_be_named_and_must_exist(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert read_text(str(path), "train", column="body").documents == ("one", "two")
    with pytest.raises(ValueError, match=r"has no text column 'nody'; it has: body, title"):
        read_text(str(path), "train", column="nody")
    with pytest.raises(ValueError, match=r"has 2 text columns \(body, title\): name one with --column"):
        read_text(str(path), "train")


def test_the_only_column_of_strings_is_taken_and_missing_values_are_empty(tmp_path):
    (tmp_path / "a.parquet").write_bytes(table(number=[1, 2, 3], body=["one", None, "two"]))
    assert read_text(str(tmp_path / "a.parquet"), "train").documents == ("one", "", "two")
    (tmp_path / "b.jsonl").write_bytes(b'{"number": 1, "body": "one"}\n')
    assert read_text(str(tmp_path / "b.jsonl"), "train").documents == ("one",)


LONG = ("a rather long text, " * 500).encode()
NOISE = "".join(chr(0x4E00 + i * i % 20000) for i in range(3000)).encode()  # text that does not pack to nothing


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *[(f"cut.txt{s}", pack(LONG + NOISE)[:-60], f"is not a whole {s} file") for s, pack in PACK.items()],
        *[(f"no.txt{s}", LONG, f"is not a whole {s} file") for s in PACK],
        ("flipped.txt.gz", gzip.compress(LONG)[:20] + b"\xff\xff\xff" + gzip.compress(LONG)[23:], "not a whole .gz"),
        ("flipped.txt.xz", lzma.compress(LONG)[:40] + b"\xff\xff\xff" + lzma.compress(LONG)[43:], "not a whole .xz"),
        ("cut.parquet", table(text=["a"] * 100)[:-30], "is not a whole parquet file"),
        ("empty.parquet", b"", "is not a whole parquet file"),
        ("latin.txt", "caf\u00e9 \u00fc".encode("latin-1"), "is not UTF-8 text"),
        ("latin.txt.gz", gzip.compress("caf\u00e9 \u00fc".encode("latin-1")), "is not UTF-8 text"),
        ("latin.jsonl", '{"text": "caf\u00e9"}'.encode("latin-1"), "line 1"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: expected one JSON object a line"),
        ("list.jsonl", b'["a"]\n', "line 1: expected a JSON object, found list"),
        ("numbers.jsonl", b'{"text": 1}\n', "has 0 text columns"),
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b"\n \n\n", "holds no text"),
        ("empty.jsonl.xz", lzma.compress(b""), "holds no text"),
        ("blank.jsonl", b'{"text": ""}\n', "holds no text"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value and " " not in value else "",
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        read_text(str(tmp_path / name), "train")
    assert name in str(refused.value)


def test_what_is_not_there(tmp_path):
    for name in (str(tmp_path / "none.txt"), "none.jsonl", "./none", "none.txt.zst"):
        with pytest.raises(ValueError, match="there is no file"):
            read_text(name, "train")
    with pytest.raises(ValueError, match="is a folder; expected a file .* that `datasets` wrote with save_to_disk"):
        read_text(str(tmp_path), "train")


@pytest.fixture
def hub(local_hub, monkeypatch, tmp_path):
    local_hub.attach(monkeypatch, tmp_path / "home", hubs.ALICE.token)
    for name in ("READ", "OPEN", "READ_SERVER_UNAVAILABLE", "READ_RATE_LIMIT"):  # minutes, as they are
        monkeypatch.setattr(datasets.config, f"STREAMING_{name}_RETRY_INTERVAL", 0.01)
    return local_hub


def add_wikitext(hub):
    name = "wikitext-103-raw-v1"
    splits = "".join(f"  - split: {s}\n    path: {name}/{s}-*\n" for s in ("train", "test"))
    readme = f"---\nconfigs:\n- config_name: {name}\n  data_files:\n{splits}---\n".encode()
    files = {f"{name}/test-0.parquet": table(text=list(WIKI_ROWS)), f"{name}/train-0.parquet": table(text=["a\n"])}
    hub.add_dataset("Salesforce/wikitext", {"README.md": readme, **files})


def test_a_local_raw_file_gives_the_tokens_of_the_hubs_rows(hub, tmp_path, tokenizer):
    add_wikitext(hub)
    (tmp_path / "wiki.test.raw").write_text(RAW)
    local, remote = read_text(str(tmp_path / "wiki.test.raw"), "test"), read_text("wikitext", "test")
    assert local.documents == remote.documents == WIKI_ROWS and remote.name == "wikitext"
    assert tokenizer(local.joined()).input_ids == tokenizer(remote.joined()).input_ids


def test_names_of_hub_data_sets_say_configuration_and_split(hub):
    add_wikitext(hub)
    full = "Salesforce/wikitext:wikitext-103-raw-v1"
    assert read_text(full, "test").documents == WIKI_ROWS
    assert read_text(f"{full}:train", "test").documents == ("a\n",)
    hub.add_dataset("alice/two", {"train.jsonl": b'{"body": "b", "title": "t"}\n'})
    assert read_text("alice/two", "train", column="title").documents == ("t",)
    with pytest.raises(ValueError, match="alice/two has 2 text columns"):
        read_text("alice/two", "train")
    with pytest.raises(ValueError, match="alice/two has no text column 'none'"):
        read_text("alice/two", "train", column="none")


@pytest.mark.parametrize(
    ("source", "split"), [("alice/texts", "validation"), ("alice/texts:other", "train"), ("alice/empty", "train")]
)
def test_a_split_or_configuration_that_is_not_there_is_refused(hub, source, split):
    hub.add_dataset("alice/texts", {"train.txt": b"one\n"})
    hub.add_dataset("alice/empty", {})
    with pytest.raises(ValueError, match="alice/") as refused:
        read_text(source, split)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK)
def test_files_of_several_packed_pieces_are_read_to_their_end(tmp_path, pack):
    path = tmp_path / f"pieces.txt{next(suffix for suffix, own in PACK.items() if own is pack)}"
    path.write_bytes(pack(b"one\n") + pack(b"two\n"))
    assert read_text(str(path), "train").documents == ("one\n", "two\n")


@pytest.mark.parametrize("source", ["alice/none", "nobody", "not a name"])
def test_a_data_set_that_is_not_there_is_refused(hub, source):
    with pytest.raises(ValueError, match="neither a local file nor a data set of the Hub"):
        read_text(source, "train")


def test_private_and_gated_data_sets_need_the_right_token(hub, local_hub, monkeypatch, tmp_path):
    local_hub.add_dataset("alice/private", {"train.txt": b"one\n"}, private=True)
    local_hub.add_dataset("alice/gated", {"train.txt": b"one\n"}, gated=True)
    assert read_text("alice/private", "train").documents == ("one",)
    local_hub.attach(monkeypatch, tmp_path / "other", hubs.BOB.token)
    for source in ("alice/private", "alice/gated"):
        with pytest.raises((ValueError, RuntimeError), match=source) as refused:
            read_text(source, "train")
        assert hubs.BOB.token not in str(refused.value)


@pytest.mark.parametrize("status", [401, 403, 429, 500])
@pytest.mark.parametrize("path", ["/api/datasets/alice/texts", "/resolve/", "/objects/"])
def test_a_hub_that_refuses_is_a_runtime_error_that_names_the_data_set(hub, path, status):
    hub.add_dataset("alice/texts", {"train-0.parquet": table(text=["one"])})
    failure = hub.fail(".*", path, status, times=None)
    with pytest.raises((RuntimeError, ValueError), match="alice/texts"):
        read_text("alice/texts", "train")
    assert failure.hits
    failure.times = 0
    assert read_text("alice/texts", "train").documents == ("one",)


def test_no_network_is_a_runtime_error(hub, monkeypatch):
    hub.add_dataset("alice/texts", {"train.txt": b"one\n"})
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(RuntimeError, match="the data set 'alice/texts' could not be read"):
        read_text("alice/texts", "train")


def refuse(self, address):
    raise ConnectionRefusedError("no network")


BROKEN = {
    "a card nested deep": {"README.md": b"---\na: " + b"[" * 200_000 + b"\n---\n", "train.txt": b"one\n"},
    "a card that is no YAML": {"README.md": b"---\nconfigs: [\n---\n", "train.txt": b"one\n"},
    "a card of another shape": {"README.md": b"---\nconfigs: 5\ndataset_info: [7]\n---\n", "train.txt": b"one\n"},
    "rows that are no JSON": {"train.jsonl": b'{"text": "a"}\n{"text":\n'},
    "a parquet that is none": {"train.parquet": b"PAR1" + b"x" * 100 + b"PAR1"},
    "latin": {"train.txt": "caf\u00e9".encode("latin-1") * 50},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_data_set_with_broken_files_is_one_sentence(hub, name):
    hub.add_dataset("alice/texts", BROKEN[name])
    with pytest.raises((ValueError, RuntimeError), match="alice/texts") as refused:
        read_text("alice/texts", "train")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_the_column_of_a_hub_data_set_is_chosen_once_too(hub):
    rows = [{"text": None, "url": "u"}, {"text": "one", "url": "u"}, {"url": "v", "text": "two"}]
    hub.add_dataset("alice/texts", {"train.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()})
    assert read_text("alice/texts", "train").documents == ("", "one", "two")
