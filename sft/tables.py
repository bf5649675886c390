"""Files, folders and Hub data sets → tables. A source that cannot be read raises DataError."""

import re
import stat
from pathlib import Path

from sft.errors import DataError
from sft.files import SUFFIXES, Table, Tick, read_file
from sft.files import identity as file_identity

HELD_OUT_NAMES = ("test", "val", "eval")  # how files begin that nobody means to train on


def read_table(
    source: str, config: str | None = None, split: str = "train", tick: Tick = lambda share, said: None
) -> Table:
    """Reads a local file or folder, or a data set from the Hub, which alone has a `config`.

    `split` chooses among the files of a folder; a file is all one split, so it takes only the default. Raises
    DataError where there is nothing to read, or not what the file's ending says.
    """
    path = _local_file(source, config, split)
    return _read_hub(source, config, split) if path is None else read_file(path, tick)


def identity(source: str, config: str | None, split: str) -> list:
    """Plain values that change when the rows of such a table do."""
    path = _local_file(source, config, split)
    if path is None:
        return [source, config, split, _read_hub(source, config, split).rows._fingerprint]
    return file_identity(path)


def held_out_split(source: str, config: str | None, split: str) -> str | None:
    """The split that goes with `split` and that nobody means to train on, where a folder or Hub data set has one."""
    path = local_path(source)
    if path is None:
        names = _read_hub(source, config, split).rows.info.splits or ()
    else:
        names = _splits_of(path) if path.is_dir() else ()
    ending = split.partition("[")[0].removeprefix("train")  # test_sft goes with train_sft
    fitting = [name for name in names if name.endswith(ending) and name not in re.findall(r"\w+", split)]
    return next((name for begin in HELD_OUT_NAMES for name in fitting if name.lower().startswith(begin)), None)


def _splits_of(folder: Path) -> list[str]:
    """The beginnings of names that exactly one file of the folder has."""
    names = [file.name.lower() for file in _data_files(folder)]
    return [begin for begin in HELD_OUT_NAMES if sum(name.startswith(begin) for name in names) == 1]


def _local_file(source: str, config: str | None, split: str) -> Path | None:
    """The file to read; None for a data set of the Hub."""
    path = local_path(source)
    if path is None:
        return None
    if config:
        raise DataError(
            f"{source} is here on this machine, and only a Hub data set has configurations, so {config!r} cannot be "
            "read from it.",
            "Leave dataset_config out.",
        )
    if path.is_dir():
        return _file_in_folder(path, split)
    if split != "train":  # otherwise all of its rows would be read for a part of them, or the training rows as held out
        raise DataError(
            f"{path.name} is a file, and a file has no splits, so {split!r} cannot be read from it.",
            "Leave train_split out; for held-out rows name another file as eval_dataset, or set eval_share.",
        )
    return path


def local_path(source: str) -> Path | None:
    """The file or folder that `source` names, or None where it can only be a Hub id.

    Raises DataError where it is a path that leads nowhere, or to what is no file: a pipe would be waited for.
    """
    try:
        path = Path(source).expanduser()
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _no_path(source, path)
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, a home folder that nobody has, no right
        raise DataError(
            f"{source[:100]!r} is not a path that can be read: {getattr(error, 'strerror', None) or error}",
            "Give the path of a file, or a Hub id.",
        ) from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise DataError(f"{source} is neither a file nor a folder.", "Write its content to a file, and give that.")
    return path


def _no_path(source: str, path: Path) -> None:
    if path.is_symlink():
        raise DataError(f"{source} is a link to {path.readlink()}, which is not there.", "Give the path of a file.")
    if path.suffix.lower() in SUFFIXES or path.is_absolute() or source.startswith((".", "~")):
        raise DataError(f"There is no file {source}.", "Check the path; it is relative to the working directory.")


def _file_in_folder(folder: Path, split: str) -> Path:
    """The file that is named after the split, or the only one there is, unless its name says that it is held out."""
    if not re.fullmatch(r"[\w.-]+", split):
        raise DataError(
            f"{split!r} cannot be read from the folder {folder}: a folder has one file for each split, and no slices.",
            "Give the plain name of a split, such as train or test.",
        )
    files = _data_files(folder)
    found = [file for file in files if file.name.lower().startswith(split.lower())]
    if not found and split == "train":
        found = [] if any(file.name.lower().startswith(HELD_OUT_NAMES) for file in files) else files
    if len(found) != 1:
        names = ", ".join(file.name for file in (found or files)[:5]) or "no data file"
        raise DataError(
            f"The folder {folder} holds {names}, so it is not clear which file to read as {split!r}.",
            f"Name one file ending in {', '.join(SUFFIXES)}.",
        )
    return found[0]


def _data_files(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    except OSError as error:
        said = f"The folder {folder} cannot be read: {error.strerror}"
        raise DataError(said, "Check that you may read it.") from None


def _read_hub(source: str, config: str | None, split: str) -> Table:
    import datasets
    import httpx2  # what huggingface_hub speaks HTTP with
    import yaml
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    unreadable = (datasets.exceptions.DatasetsError, datasets.data_files.EmptyDatasetError)
    try:
        validate_repo_id(source)
        if source.count("/") != 1:  # datasets takes "json", "text" and the like for readers of all files around here
            raise HFValidationError
        rows = datasets.load_dataset(source, config, split=split)
    except HFValidationError:
        raise DataError(
            f"{source!r} is neither a file here nor a possible name of a Hub data set.",
            "Give a path, or an id such as HuggingFaceTB/smoltalk.",
        ) from None
    except (datasets.exceptions.DatasetNotFoundError, RepositoryNotFoundError):
        raise DataError(
            f"There is no file {source} here and no data set {source} on the Hub that you may read.",
            "Check the spelling; a gated data set needs `hf auth login` first.",
        ) from None
    except ValueError as error:  # an unknown config or split: the library's message lists the known ones
        said = str(error).partition("\nExample of usage")[0]
        raise DataError(f"{source}: {said}", "Choose one of the names that the message lists.") from None
    except (*unreadable, RuntimeError, StopIteration, yaml.YAMLError) as error:
        reason = error.__cause__ or error  # datasets wraps what went wrong with a file's content
        raise DataError(
            f"{source} is on the Hub, but its files cannot be read as rows: {_first_line(reason)}",
            "Choose another data set, or download its file and give the path.",
        ) from None
    except (httpx2.HTTPError, OSError) as error:
        raise DataError(
            f"{source} could not be read from the Hub: {_first_line(error)}",
            "Check the network, or use a local file.",
        ) from None
    return Table(source, rows)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
