"""The running package as a wheel, for a job to install: a package index may hold something else of its name."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

NAME = "hf-mamba-prune"

_WHEEL = "Wheel-Version: 1.0\nGenerator: hf-mamba-prune\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The same files are the same bytes, whenever they are packed."""


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel in memory.

    Args:
        name: of its file.
        content: its bytes.
    """

    name: str
    content: bytes

    @property
    def sha256(self) -> str:
        """Hash of the content, 64 hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()


def running_wheel() -> Wheel:
    """This package as it runs here, installed or from a checkout, without the kernels of this machine.

    They are built for one version of Python and one system; where there are none, the twins in plain torch run.

    Raises:
        RuntimeError: it is not installed, so what it needs is not known; or it does not lie in a folder.
    """
    try:
        found = metadata.distribution(NAME)
    except metadata.PackageNotFoundError as error:
        raise RuntimeError(
            f"{NAME} is not installed here, so a job cannot be told what to install: run `pip install --editable .`."
        ) from error
    facts, commands = found.read_text("METADATA"), found.read_text("entry_points.txt")
    root = Path(__file__).resolve().parents[1]
    files = _files(root)
    if not (facts and commands and files):
        raise RuntimeError(f"{NAME} lies incomplete in {root}, so a job cannot install it: install it anew.")
    stem = f"{NAME.replace('-', '_')}-{found.version}"
    about = {"METADATA": facts, "WHEEL": _WHEEL, "entry_points.txt": commands}
    files |= {f"{stem}.dist-info/{name}": text.encode("utf-8") for name, text in about.items()}
    return Wheel(name=f"{stem}-py3-none-any.whl", content=_pack(files, f"{stem}.dist-info/RECORD"))


def _files(root: Path) -> dict[str, bytes]:
    """All files of the package but those that were made on this machine, or are needed only to make them."""
    found = {}
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        made_here = "__pycache__" in parts or (parts[0] == "native" and path.suffix != ".py")
        if path.is_file() and not made_here:
            found["/".join((root.name, *parts))] = path.read_bytes()
    return found


def _pack(files: dict[str, bytes], record: str) -> bytes:
    lines = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    listing = "\n".join([*lines, f"{record},,", ""]).encode("utf-8")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in {**files, record: listing}.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return packed.getvalue()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode("ascii")
