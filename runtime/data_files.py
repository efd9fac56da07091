"""Data files and their rows: JSON Lines, JSON, CSV, parquet, gzip, folders; local or on the Hub.

The form is told by the content; of CSV, which has no mark, by the name. Whatever a file holds, no
more of it is held at once than MAX_PIECE: a line, an array, a CSV row.

    for path in find_files("openai/gsm8k:main/train"):
        for place, row in rows_of(path): ...
"""

import csv
import fnmatch
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath

from runtime import first_line, reason_of_the_hub

MAX_PIECE = 256 << 20  # bytes of a line, of a JSON array or object, of a CSV row
# Text packs 3 to 10 times: a file that unpacks to more than this is made to fill memory or time.
MAX_PACKING = 200
MAX_BLANK = 1 << 20  # lines without anything, one after the other
MAX_ROW_GROUP = 8 << 30  # bytes of a parquet file's row group, unpacked
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
SPLITS = {"val": "validation", "valid": "validation", "dev": "validation"}
SPLITS |= {name: name for name in ("train", "test", "validation", "eval")}
ANSWERS = "possible_answer"  # BFCL's folder: its files hold the answers to those of the same name


# --- where ---


def is_data(name: str) -> bool:
    """Whether a file's name is that of a data file."""
    return name.lower().removesuffix(".gz").endswith(SUFFIXES)


def find_files(spec: str) -> list[Path]:
    """The files of FILE, FOLDER, FOLDER:SPLIT, OWNER/NAME, OWNER/NAME:FILE or OWNER/NAME:SPLIT.

    SPLIT may have a folder before it, CONFIG/SPLIT. Files of the Hub are downloaded or taken from
    its cache. Raises ValueError, in one line.
    """
    head, _, wanted = spec.partition(":")
    if Path(spec).is_file():
        return [Path(spec)]
    for folder, split in ((Path(spec), ""), (Path(head), wanted)):
        if folder.is_dir():
            names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
            return [folder / name for name in select(names, split, spec, several=True)]
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", head) or not wanted and is_data(spec):
        raise ValueError(f"no such data file: {spec} (for a file on the Hub write OWNER/NAME:FILE)")
    return _download(head, wanted, spec)


def _download(repo, wanted, spec):
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    kind = {"repo_type": "dataset"}

    def names_there():
        try:
            return HfApi().list_repo_files(repo, **kind)
        except Exception as error:  # no network: is there what was downloaded before?
            try:
                folder = Path(snapshot_download(repo, local_files_only=True, **kind))
            except LocalEntryNotFoundError:
                raise error from None
            print(f"{repo}: the Hub gave no list of files ({first_line(error)}): taking {folder}")
            return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]

    print(f"{spec}: no file or folder here, so it is fetched from the Hub or its cache", flush=True)
    names = [wanted]
    if not is_data(wanted) or "*" in wanted:
        names = select(_of_the_hub(names_there, spec), wanted, spec)
    for path in map(PurePosixPath, list(names)):
        if path.name.startswith("BFCL"):
            names.append(str(path.parent / ANSWERS / path.name))
    paths = [_of_the_hub(hf_hub_download, spec, repo, name, **kind) for name in names]
    return [Path(path) for path in paths if Path(path).parent.name != ANSWERS]


def _of_the_hub(function, spec, *arguments, **options):
    try:
        return function(*arguments, **options)
    except Exception as error:  # of the network, the Hub, the disk
        raise ValueError(f"cannot load {spec} from the Hub: {reason_of_the_hub(error)}") from None


def select(names: list[str], wanted: str, spec: str, *, several: bool = False) -> list[str]:
    """The data files among `names` that `wanted` means: a file, a folder, a split, FOLDER/SPLIT.

    Without a split, train is taken, or the only one. several: files that are not shards of one may
    be read together, as in a local folder; so may those that a * means. Raises ValueError where the
    choice is not clear.
    """
    found = [name for name in sorted(names) if is_data(name) and not _is_about(name)]
    if chosen := [name for name in found if name == wanted or fnmatch.fnmatch(name, wanted)]:
        return chosen
    folder, _, split = wanted.rpartition("/")
    if split not in SPLITS:
        folder, split = wanted, ""
    if folder:
        found = [n for n in found if fnmatch.fnmatch(str(PurePosixPath(n).parent), folder)]
    known = sorted(set(map(split_of, found)) - {""})
    if len(known) > 1 and not split:
        if several or "train" not in known:
            raise ValueError(f"{spec} has several splits: write {_end(spec, known)}")
        split = "train"
    if split:
        found = [name for name in found if split_of(name) == SPLITS[split]]
    if not found:
        shown = ", ".join(sorted(filter(is_data, names))[:5]) or "none"
        raise ValueError(f"{spec}: no such data file, folder or split; data files there: {shown}")
    sets = sorted({re.sub(r"-\d{5}-of-\d{5}.*", "", name) for name in found})
    if len(sets) > 1 and not several and "*" not in folder:
        raise ValueError(f"{spec} has {len(sets)} data sets: write {_end(spec, sets[:5])}")
    _check_shards(found, spec)
    return found


def _end(spec, endings):
    return " or ".join(f"{spec.partition(':')[0]}:{ending}" for ending in endings)


def _is_about(name):
    """Files about the data, hidden ones, and BFCL's answers, which are read with the questions."""
    parts = PurePosixPath(name).parts
    return parts[-1] in ABOUT or any(part[0] == "." or part == ANSWERS for part in parts)


def split_of(name: str) -> str:
    """train, test, validation or eval where a file's name or folder says so, else ""."""
    for part in reversed(PurePosixPath(name.lower()).parts):
        for word in re.split(r"[-_.]", part):
            if word in SPLITS:
                return SPLITS[word]
    return ""


def _check_shards(names, spec):
    """A shard that is missing would go unnoticed: it is only fewer rows."""
    shards = {}
    for name in names:
        if m := re.search(r"-(\d{5})-of-(\d{5})", name):
            shards.setdefault((name[: m.start()], int(m[2])), set()).add(m[1])
    for (start, total), there in shards.items():
        if len(there) < total:
            raise ValueError(f"{spec}: {len(there)} of the {total} files {start}-... are there")


# --- rows ---


def rows_of(
    path: Path,
    *,
    wanted: Callable[[str], bool] | None = None,
    named: Collection[str] = (),
    limit: int = MAX_PIECE,
) -> Iterator[tuple[str, dict | Exception]]:
    """(place, row) of each row of a file; the exception instead of a row that cannot be read.

    place: FILE:LINE, or "FILE: row N" where lines say nothing. wanted: which columns of a parquet
    file to read. named: fields that the user named: an object with one of them is a row. limit: see
    MAX_PIECE. Raises ValueError where the file itself cannot be read on.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            if start == b"PAR1":
                yield from _parquet(path, wanted, named)
                return
            _refuse_others(start, path)
            file.seek(0)
            most = None
            if start[:2] == b"\x1f\x8b":
                most = max(limit, MAX_PACKING * os.path.getsize(path))
                file = io.BufferedReader(gzip.GzipFile(fileobj=file))
            yield from _text_rows(_Lines(file, path, limit, most), path, limit, named)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = "cut short" if isinstance(error, EOFError) else "damaged"
        raise ValueError(f"{path}: the gzip file is {reason}") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None


def _refuse_others(start, path):
    marks = {b"PK\x03\x04": "a zip", b"BZh": "a bzip2", b"\xfd7zX": "an xz"}
    marks |= {b"\x28\xb5\x2f\xfd": "a zstandard"}  # whole: a header may begin with PK
    for mark, kind in marks.items():
        if start.startswith(mark):
            raise ValueError(f"{path} is {kind} file: unpack it first")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path} is UTF-16 text: save it as UTF-8")


class _Lines:
    """Numbered lines as bytes, none longer than `limit`, no more than `most` bytes in all."""

    def __init__(self, file, path, limit, most):
        self.file, self.path, self.limit, self.most = file, path, limit, most
        self.number = self.size = self.filled = 0

    def __iter__(self):
        while line := self.file.readline(self.limit + 1):
            self.number += 1
            self.size += len(line)
            if len(line) > 2:
                self.filled = self.number
            elif self.number - self.filled > MAX_BLANK:
                raise ValueError(f"{self.path}:{self.number}: more than {MAX_BLANK} empty lines")
            if len(line) > self.limit:
                raise ValueError(f"{self.path}:{self.number}: {_too_long('line', self.limit)}")
            if self.most and self.size > self.most:
                raise ValueError(
                    f"{self.path} unpacks to more than {MAX_PACKING} times its size: refused"
                )
            yield line.removeprefix(b"\xef\xbb\xbf") if self.number == 1 else line


def _too_long(what, limit):
    return f"one {what} of more than {limit / 2**20:.0f} MB: write one row a line (JSON Lines)"


def _text_rows(lines, path, limit, named):
    each = iter(lines)
    first = next((line for line in each if line.strip()), b"")
    start = lines.number
    if re.search(r"\.[ct]sv(\.gz)?$", path.name.lower()):
        yield from _csv(first, each, lines, path)
        return
    second = b""
    if first.lstrip()[:1] != b"[":
        second = next((line for line in each if line.strip()), b"")
    if not first:
        return
    goes_on = not first.rstrip().endswith(b"}") and second.lstrip()[:1] != b"{"
    if first.lstrip()[:1] == b"[" or goes_on:
        yield from _whole(first + second, each, start, path, limit, named)
        return
    row = _parse(first)
    inner = _only_list(row, path, named) if not second and isinstance(row, dict) else None
    if inner is not None:
        yield from ((f"{path}: row {n}", row) for n, row in enumerate(inner, 1))
        return
    yield f"{path}:{start}", row
    if second:
        yield f"{path}:{lines.number}", _parse(second)
    for line in each:
        if line.strip():
            yield f"{path}:{lines.number}", _parse(line)


def _parse(line):
    """The object in a line, or the ValueError that says why there is none."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return ValueError(_not_utf8(error))
    except json.JSONDecodeError as error:
        return ValueError(f"not one JSON object: {_fault(error)}")
    except RecursionError:
        return ValueError("nested too deeply")
    except ValueError:  # Python reads integers of at most 4,300 digits
        return ValueError("a number has too many digits")
    return row if isinstance(row, dict) else ValueError("not a JSON object")


def _fault(error):
    """What json says: "Unterminated string starting at" and "Expecting value" alike."""
    return f"{error.msg.removesuffix(' at')} at column {error.colno}"


def _not_utf8(error):
    byte = error.object[error.start]
    return f"not UTF-8 (byte 0x{byte:02x} at position {error.start}): save the file as UTF-8"


def _whole(text, rest, start, path, limit, named):
    """The rows of a file that is one JSON array, or one object with one list of objects."""
    pieces, size = [text], len(text)
    for piece in rest:
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise ValueError(f"{path}: {_too_long('JSON array', limit)}")
    text = b"".join(pieces)
    del pieces
    try:
        text, number = text.decode("utf-8").strip(), 0
        rows = _elements(text) if text[0] == "[" else iter(_inside(json.loads(text), path, named))
        for number, row in enumerate(rows, 1):
            fault = ValueError("not a JSON object")
            yield f"{path}: row {number}", row if isinstance(row, dict) else fault
    except UnicodeDecodeError as error:
        line = start + text.count(b"\n", 0, error.start)
        raise ValueError(f"{path}:{line}: {_not_utf8(error)}") from None
    except json.JSONDecodeError as error:
        line = start + error.lineno - 1
        raise ValueError(f"{path}:{line}: not one JSON object or array: {_fault(error)}") from None
    except RecursionError:
        raise ValueError(f"{path}:{start}: row {number + 1} is nested too deeply") from None


_SPACE = re.compile(r"[ \t\r\n]*")


def _elements(text):
    """The elements of a JSON array, one at a time: all together take 20 times the text's memory."""
    decoder, end = json.JSONDecoder(), _SPACE.match(text, 1).end()
    more = text[end : end + 1] != "]"
    while more:
        try:
            value, end = decoder.raw_decode(text, end)
        except json.JSONDecodeError:
            raise
        except ValueError:  # Python reads integers of at most 4,300 digits
            raise json.JSONDecodeError("a number has too many digits", text, end) from None
        yield value
        end = _SPACE.match(text, end).end()
        more = text[end : end + 1] == ","
        if not more and text[end : end + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
        end = _SPACE.match(text, end + 1).end() if more else end
    if end + 1 < len(text):
        raise json.JSONDecodeError("Extra data", text, end + 1)


def _inside(row, path, named):
    inner = _only_list(row, path, named)
    return [row] if inner is None else inner


def _only_list(row, path, named):
    """The list of objects that an object around all rows holds; None where it is a row itself."""
    lists = {
        name: value
        for name, value in row.items()
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    }
    texts = any(isinstance(value, str) and len(value) > 200 for value in row.values())
    usual = {"prompt", "question", "problem", "query", "messages", "conversations", "text"}
    usual |= {"description", "question_content", "nldocumentation"}
    usual |= {part.lower() for name in named for part in (name, name.partition(".")[0])}
    if not lists or texts or usual & {name.lower() for name in row}:
        return None
    if len(lists) > 1:
        names = ", ".join(map(repr, lists))
        raise ValueError(f"{path} is one object with several lists ({names}): write one of them")
    return next(iter(lists.values()))


def _csv(first, rest, lines, path):
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    if delimiter == "," and first.count(b";") > first.count(b","):
        delimiter = ";"
    used = 0

    def texts():
        nonlocal used
        yield first.decode("utf-8")
        for line in rest:
            used += len(line)
            if used > lines.limit:
                raise ValueError(f"{path}:{lines.number}: {_too_long('CSV row', lines.limit)}")
            yield line.decode("utf-8")

    csv.field_size_limit(min(lines.limit, 2**31 - 1))
    try:
        header = None
        for cells in csv.reader(texts(), delimiter=delimiter, strict=True):
            used = 0
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    raise ValueError(f"{path}: two columns of one name in the header")
            elif cells and len(cells) != len(header):
                fault = f"{len(cells)} cells, and the header has {len(header)}"
                yield f"{path}:{lines.number}", ValueError(fault)
            elif cells:  # an empty cell and a missing one look the same
                row = {name: cell or None for name, cell in zip(header, cells, strict=True)}
                yield f"{path}:{lines.number}", row
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{lines.number}: {_not_utf8(error)}") from None
    except csv.Error as error:
        raise ValueError(f"{path}:{lines.number}: not CSV: {error}") from None


def _parquet(path, wanted, named):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{path} is parquet, which needs the package pyarrow: pip install pyarrow"
        ) from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            # all columns where a named one is missing: the error lists what there is
            if {name.partition(".")[0].lower() for name in named} <= set(map(str.lower, names)):
                names = [name for name in names if wanted is None or wanted(name)] or names
            about = file.metadata
            groups = [about.row_group(n).total_byte_size for n in range(about.num_row_groups)]
            if max(groups, default=0) > MAX_ROW_GROUP:
                raise ValueError(f"{path}: a row group of more than {MAX_ROW_GROUP >> 30} GB")
            for batch in file.iter_batches(batch_size=256, columns=names):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: the parquet file is damaged: {first_line(error)}") from None
