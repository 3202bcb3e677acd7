"""Where a package index has an archive. pip's own settings say which index; pip need not be there.

The index is asked as pip asks it (the simple repository API, PEP 503 and 691), so that mirrors do.
"""

import ast
import base64
import json
import os
import re
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from http.client import HTTPException
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from depthsys.files.download import Address, reason

DEFAULT = "https://pypi.org/simple"
_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, text/html;q=0.5"
_SETTING = re.compile(r"(global|download|:env:)\.([\w-]+)=(.*)")
_SECTIONS = ("global", "download", ":env:")  # a later one counts more


@dataclass(frozen=True)
class Archive:
    """A file of a package index.

    Attributes
    ----------
    package, version
        What it is a release of.
    file, size, sha256
        Its name, bytes and checksum.
    licence, holds
        In words, what is taken from it and under which licence.
    """

    package: str
    version: str
    file: str
    size: int
    sha256: str
    licence: str
    holds: str


@dataclass(frozen=True)
class Indexes:
    """Package indexes, asked one after the other.

    Attributes
    ----------
    urls
        Of their simple pages; a user and password in them are sent, and not shown.
    certificates
        File of certificates that are trusted too, or None.
    """

    urls: tuple[str, ...]
    certificates: str | None = None

    @classmethod
    def of_pip(cls, index: str | None = None) -> "Indexes":
        """Those that pip's settings name (index-url, extra-index-url, cert), or that one."""
        found = _settings()
        named = found.get("index-url", DEFAULT), *found.get("extra-index-url", "").split()
        return cls((index,) if index else named, found.get("cert"))

    def __str__(self) -> str:
        """Their addresses without passwords."""
        return ", ".join(_split(url)[0] for url in self.urls)

    def address(self, archive: Archive) -> Address:
        """Where the first of them that has it has it.

        Raises
        ------
        ConnectionError
            If none has it, with what each of them said.
        """
        said = []
        for url in self.urls:
            page, headers = _split(f"{url.rstrip('/')}/{_normal(archive.package)}/")
            local = urlsplit(page).scheme == "file"
            asked = Address(page + "index.html" * local, headers, self.certificates)
            try:
                links = dict(_links(asked))
            except urllib.error.HTTPError as error:
                error.close()
                said.append(f"{_split(url)[0]}: {error.code} {error.reason}")
                continue
            except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
                said.append(f"{_split(url)[0]}: {reason(error)}")
                continue
            if archive.file in links:
                found, given = _split(links[archive.file])
                same = urlsplit(found).netloc == urlsplit(page).netloc
                return Address(found, given or (headers if same else {}), self.certificates)
            said.append(f"{_split(url)[0]}: it has no {archive.file}")
        raise ConnectionError(
            f"`index` must have {archive.package} {archive.version}; got {'; '.join(said)}. "
            "Check the network, or name another index with `--index`; what is there already is kept"
            "."
        )


def _links(page: Address) -> Iterator[tuple[str, str]]:
    """Names and addresses of the files on a simple page."""
    with page.open(accept=_ACCEPT) as response:
        kind, base = response.headers.get("Content-Type") or "", response.url or page.url
        text = response.read().decode("utf-8")
    if "json" in kind:
        for each in json.loads(text)["files"]:
            yield each["filename"], urljoin(base, each["url"])
        return
    reader = _Anchors()
    reader.feed(text)
    for href in reader.found:
        url = urljoin(base, href).partition("#")[0]
        yield unquote(urlsplit(url).path.rpartition("/")[2]), url


class _Anchors(HTMLParser):
    """Collects the targets of links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if (tag, name) == ("a", "href") and value]


def _normal(package: str) -> str:
    """The name of a package as it stands in addresses (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _split(url: str) -> tuple[str, dict[str, str]]:
    """An address without user and password, and the header that carries these."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    coded = base64.b64encode(unquote(user).encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), {"Authorization": f"Basic {coded}"}


def _settings() -> dict[str, str]:
    """What pip's files and environment say; without pip, what the environment says."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        names = ("index-url", "extra-index-url", "cert")
        environment = ((n, os.environ.get("PIP_" + n.upper().replace("-", "_"))) for n in names)
        return {name: value for name, value in environment if value}
    found = [match.groups() for match in map(_SETTING.fullmatch, told.stdout.splitlines()) if match]
    found.sort(key=lambda each: _SECTIONS.index(each[0]))
    return {name: str(ast.literal_eval(value)) for _, name, value in found}
