"""Files of text: all of it, or line by line. What is not UTF-8 text is told, with the line."""

from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from sft.errors import DataError


def read_text(path: Path) -> str:
    """The file as text, its lines ended by a newline alone."""
    data = path.read_bytes()
    _check_encoding(path, data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, data.count(b"\n", 0, error.start) + 1, data[error.start]) from None
    if "\0" in text:
        raise _binary(path, text.count("\n", 0, text.index("\0")) + 1)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines(path: Path, file: BufferedReader) -> Iterator[tuple[int, int, str]]:
    """The lines of a file and the bytes `[start, end)` that each takes, without what ends it: \\n, \\r\\n or \\r."""
    _check_encoding(path, file.peek(2))
    start, binary = 0, None
    for number, raw in enumerate(file, start=1):
        at, start = start, start + len(raw)
        if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
            at, raw = 3, raw[3:]
        binary = binary or (number if b"\0" in raw else None)
        for piece in raw.removesuffix(b"\n").removesuffix(b"\r").split(b"\r"):
            try:
                yield at, at + len(piece), piece.decode()
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, piece[error.start]) from None
            at += len(piece) + 1
    if binary:  # told last: a file that is no text at all says more about itself by that
        raise _binary(path, binary)


def _check_encoding(path: Path, beginning: bytes) -> None:
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path.name} is UTF-16 text, not UTF-8.", "Save it as UTF-8.")


def _not_utf8(path: Path, line: int, byte: int) -> DataError:
    return DataError(
        f"{path.name} is not UTF-8 text (line {line} has the byte 0x{byte:02x}), so it is not the "
        f"{_kind(path)} file that its ending says.",
        "Save it as UTF-8, or give the file the ending that matches its content.",
    )


def _binary(path: Path, line: int) -> DataError:
    return DataError(
        f"{path.name} is not a {_kind(path)} file: line {line} holds binary data.",
        f"Save it as {_kind(path)}, in UTF-8, from its program.",
    )


def _kind(path: Path) -> str:
    return path.suffix[1:].upper()
