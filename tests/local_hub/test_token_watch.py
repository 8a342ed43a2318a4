"""The watch that runs after every test sees a token wherever it is put."""

from __future__ import annotations

import pytest
from token_watch import WatchedCapture, files_with_tokens, holds_token

from local_hub import ALICE


def test_it_sees_tokens_in_files_of_any_kind(tmp_path):
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "args.bin"
    path.write_bytes(b"\x00\x01" + ALICE.token.encode() + b"\xff")
    (tmp_path / "card.md").write_text("nothing here")
    assert files_with_tokens(tmp_path) == [path]
    path.unlink()


def test_it_sees_tokens_in_what_was_printed(capsys):
    class Shown:
        def readouterr(self):
            return type("Found", (), {"out": "", "err": f"Bearer {ALICE.token}"})

    with pytest.raises(AssertionError, match="a token was printed"):
        WatchedCapture(Shown()).readouterr()
    assert holds_token(f"x{ALICE.token}y") and not holds_token("hf_")
