"""What is said of a file that cannot be read: one line of bounded length, whatever is in it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

import xarray as xr

from depthsys.files import found
from depthsys.files.strangers.limits import Refused, one_line

LONGEST = 1500  # characters of a message

Reader = Callable[[str | os.PathLike], xr.Dataset]


@contextmanager
def told_of(path: str | os.PathLike, what: str, cure: str = "Write it again.") -> Iterator[None]:
    """Whatever goes wrong when a file is read, as ValueError: ``path`` must be ``what``."""
    try:
        yield
    except Refused as error:
        raise ValueError(
            f"`path` must be {what} that is safe to read; got {str(path)!r}: {error}. Save it "
            "again, as plain arrays in one file."
        ) from error
    except MemoryError as error:
        raise ValueError(
            f"`path` must fit into the memory; got {str(path)!r}, which does not. Use a machine "
            "with more, or a smaller system."
        ) from error
    except Exception as error:  # whatever the libraries trip over in a damaged file
        why = one_line(error).rstrip(".") or type(error).__name__
        raise ValueError(f"`path` must be {what}; got {str(path)!r}: {why}. {cure}") from error


def guarded(read: Reader) -> Reader:
    """A reader whose every error is one clear line.

    What a killed export left at the path is put right first.
    """

    @wraps(read)
    def reading(path: str | os.PathLike) -> xr.Dataset:
        found(path)
        try:
            return read(path)
        except OSError:
            raise
        except (ValueError, TypeError) as error:
            said = str(error)
            if not said.startswith("`"):  # not said by us
                raise ValueError(_unfitting(path, error)) from error
            if len(said) <= LONGEST and said.isprintable():
                raise
            raise type(error)(_shortened(said)) from None
        except MemoryError as error:
            raise ValueError(
                f"`path` must fit into the memory; got {str(path)!r}, which does not. Use a "
                "machine with more, or a smaller system."
            ) from error
        except Exception as error:  # parts that make no sense together
            raise ValueError(_unfitting(path, error)) from error

    return reading


def _unfitting(path: str | os.PathLike, error: Exception) -> str:
    return (
        f"`path` must hold a system; got {str(path)!r}, in which something does not fit: "
        f"{type(error).__name__}, {one_line(error)}. Export it again."
    )


def _shortened(said: str) -> str:
    """Its beginning, which says what is wrong, and its end, which says what to do."""
    half = LONGEST // 2 - 3
    if len(said) > LONGEST:
        said = f"{said[:half]} ... {said[-half:]}"
    return one_line(said, LONGEST)


def existing_file(path: str | os.PathLike) -> Path:
    """The path of a file; FileNotFoundError for anything else, devices and pipes among it."""
    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"`path` must be an existing file; got {str(path)!r}. Look for it.")
    return place
