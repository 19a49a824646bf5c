"""A journal: what a run has found so far, in a file that is only ever appended to.

One line an entry: the CRC-32 of the line before and of this one, as eight hexadecimal digits, and JSON. The first says
whose journal it is. A line that was cut short by the end of the process is dropped; any other damage is an error.
"""

from __future__ import annotations

import base64
import json
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hessprobe.errors import JournalError

FORMAT = "hessprobe.journal/1"
# Beyond this nothing more is kept: the rest of a run that is gone through again is then made anew.
LARGEST = 2**32

_DIGITS = 8
_FIRST = b'{"journal":"'
_SYNC_SECONDS = 1.0


class Journal:
    """The journal of one run; a ``hessprobe.hvp.engines.Ledger``.

    Every entry is with the operating system when its call returns, so that it outlives the process however that ends,
    and on the disk a second later, or at ``close``.

    Args:
        path: the file; its folder exists.
        identity: what decides the numbers, as plain values by name; two runs of the same identity are one run.
        resume: go on from the file, where there is one; it is begun anew otherwise.
        largest: bytes after which nothing more is kept.
        anew: the advice where it is damaged.

    Attributes:
        path: the file.
        replayed: products that were taken from it.
        failure: why nothing more is written (a full disk), or None.

    Raises:
        JournalError: damaged before its last line, of another format, or of another run (names what differs); or begun
            anew where a file lies that is no journal, which is left as it is.
        OSError: it cannot be opened.
    """

    def __init__(
        self,
        path: str | Path,
        identity: Mapping[str, Any],
        *,
        resume: bool = False,
        largest: int = LARGEST,
        anew: str = "Begin anew without --resume; that replaces it.",
    ) -> None:
        self.path, self.replayed, self._anew = Path(path), 0, anew
        self.failure: OSError | None = None
        self._identity, self._largest = json.loads(json.dumps(identity)), largest
        self._values: dict[str, Any] = {}
        self._products: dict[str, tuple[int, int]] = {}
        self._end, self._crc, self._synced = 0, 0, time.monotonic()
        again = resume and self.path.exists()
        if not again:
            _require_none_of_others(self.path)
        self._file = open(self.path, "r+b" if again else "w+b", buffering=0)  # noqa: SIM115  # closed by close
        try:
            if again:
                self._read()
        except BaseException:
            self._file.close()
            raise
        if not self._end:
            self._append({"journal": FORMAT, "identity": self._identity})

    @classmethod
    def going_on(cls, path: str | Path, identity: Mapping[str, Any]) -> Journal:
        """Return the journal of a run that goes on without being told to; that of another run is replaced.

        Raises:
            JournalError: it is of this run and damaged before its last line, or no journal.
            OSError: it cannot be opened.
        """
        return cls(path, identity, resume=_is_of(Path(path), identity), anew="Remove it to begin anew.")

    def __len__(self) -> int:
        """Return how many products it holds."""
        return len(self._products)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._end

    def compact(self) -> None:
        """Leave out all products but the last: where parts of a run are done, their values are enough.

        The file is replaced by the shorter one in one step, or stays as it is where that cannot be written.
        """
        if self.failure is not None or not self._products:
            return
        last = next(reversed(self._products))
        made = self.product(last)
        self.replayed -= 1
        place = self.path.with_name(f"{self.path.name}.new")
        try:
            shorter = Journal(place, self._identity, largest=self._largest, anew=self._anew)
        except (OSError, JournalError):
            return
        for key, value in self._values.items():
            shorter.keep_value(key, value)
        if made is not None:
            shorter.keep_product(last, made)
        shorter.close()
        if shorter.failure is not None:
            place.unlink(missing_ok=True)
            return
        os.replace(place, self.path)
        self._file.close()
        self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115  # closed by close
        self._values, self._products = shorter._values, shorter._products
        self._end, self._crc = shorter._end, shorter._crc

    def product(self, key: str) -> Tensor | None:
        """See ``Ledger``."""
        place = self._products.get(key)
        if place is None:
            return None
        self.replayed += 1
        entry = json.loads(os.pread(self._file.fileno(), place[1], place[0]))
        content = np.frombuffer(bytearray(base64.b64decode(entry["data"])), dtype=np.uint8)
        dtype: torch.dtype = getattr(torch, entry["dtype"])
        return torch.from_numpy(content).view(dtype).reshape(entry["shape"])

    def keep_product(self, key: str, value: Tensor) -> None:
        """See ``Ledger``."""
        if self._end + 2 * value.numel() * value.element_size() > self._largest:
            return
        plain = value.detach().cpu().contiguous()
        content = base64.b64encode(plain.reshape(-1).view(torch.uint8).numpy().tobytes()).decode()
        dtype = str(plain.dtype).removeprefix("torch.")
        begin = self._end
        if self._append({"key": key, "dtype": dtype, "shape": list(plain.shape), "data": content}):
            self._products[key] = (begin + _DIGITS + 1, self._end - begin - _DIGITS - 2)

    def value(self, key: str) -> Any:
        """See ``Ledger``."""
        return self._values.get(key)

    def keep_value(self, key: str, value: Any) -> None:
        """See ``Ledger``."""
        self._append({"key": key, "value": value})
        self._values[key] = value

    def close(self, *, done: bool = False) -> None:
        """Close the file; remove it where the run is ``done`` and its outcome written."""
        if self._file.closed:
            return
        if not done and self.failure is None:
            os.fsync(self._file.fileno())
        self._file.close()
        if done:
            self.path.unlink(missing_ok=True)

    def _append(self, entry: Mapping[str, Any]) -> bool:
        """Write one line, whole or not at all; return whether it stands."""
        if self.failure is not None:
            return False
        text = json.dumps(entry, separators=(",", ":")).encode()
        crc = zlib.crc32(text, self._crc)
        line = b"%08x %s\n" % (crc, text)
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._file.fileno(), line[written:], self._end + written)
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            # What has been measured is worth more than the journal: the run goes on without.
            self.failure = error
            os.ftruncate(self._file.fileno(), self._end)
            return False
        self._end, self._crc = self._end + len(line), crc
        return True

    def _read(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        for number, line in enumerate(self._file, 1):
            begin = self._end
            text = line[_DIGITS + 1 : -1]
            crc = zlib.crc32(text, self._crc)
            if not line.endswith(b"\n") or line[: _DIGITS + 1] != b"%08x " % crc:
                if begin + len(line) == size and not line.endswith(b"\n"):
                    break
                raise JournalError(f"{self.path} is damaged in line {number}. {self._anew}")
            self._take(number, json.loads(text), (begin + _DIGITS + 1, len(text)))
            self._end, self._crc = begin + len(line), crc
        os.ftruncate(self._file.fileno(), self._end)

    def _take(self, number: int, entry: dict[str, Any], place: tuple[int, int]) -> None:
        if number == 1:
            self._require_own(entry)
        elif "value" in entry:
            self._values[entry["key"]] = entry["value"]
        else:
            self._products[entry["key"]] = place

    def _require_own(self, entry: Mapping[str, Any]) -> None:
        if entry.get("journal") != FORMAT:
            raise JournalError(f"{self.path} is no journal that this version reads. {self._anew}")
        there = entry["identity"]
        for name in dict.fromkeys((*self._identity, *there)):
            now, then = self._identity.get(name), there.get(name)
            if now != then:
                raise JournalError(
                    f"{self.path} is the journal of another run: {name} was {then!r} and is {now!r}. "
                    f"Give the same command, or {self._anew[0].lower()}{self._anew[1:]}"
                )


def _require_none_of_others(path: Path) -> None:
    """Refuse to replace what is no journal; of one that was killed at its first line, the beginning is enough.

    Raises:
        JournalError: it is something else.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        head = file.read(_DIGITS + 1 + len(_FIRST))
    digits, space, first = head[:_DIGITS], head[_DIGITS : _DIGITS + 1], head[_DIGITS + 1 :]
    if digits.strip(b"0123456789abcdef") or space not in (b"", b" ") or not _FIRST.startswith(first):
        raise JournalError(
            f"{path} is where the journal of this run has to lie, and is none. Move it away, or choose another output."
        )


def _is_of(path: Path, identity: Mapping[str, Any]) -> bool:
    """Return whether the first line of a file is whole, and that of a journal of this run."""
    try:
        with path.open("rb") as file:
            line = file.readline()
    except OSError:
        return False
    text = line[_DIGITS + 1 : -1]
    if line[: _DIGITS + 1] != b"%08x " % zlib.crc32(text) or not line.endswith(b"\n"):
        return False
    return bool(json.loads(text) == {"journal": FORMAT, "identity": json.loads(json.dumps(identity))})
