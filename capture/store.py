"""Where a log's files are: in a folder, or under a prefix of a bucket that speaks S3.

Keys, region and endpoint come from the ``AWS_`` variables of the environment, which the clients
(obstore's and deltalake's, one library inside) read themselves.
"""

import functools
import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Annotated

import obstore
from obstore.store import S3Store
from pydantic import PlainSerializer, PlainValidator

SCHEME = "s3://"
URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]+)(/[^?#]*)?")
MAX_RETRIES, RETRY_SECONDS = 3, 30
UPLOAD_SECONDS = 86400.0  # no file is longer on its way into a table
NOISE = re.compile(r"\x1b\[\d*m|↳|\n\nDebug source:.*", re.DOTALL)
HINT = "if the store cannot be reached, check AWS_ENDPOINT_URL, AWS_REGION and the keys; try again"


@dataclass(frozen=True, slots=True)
class S3Path:
    """An object, or the prefix of several; it joins as a ``pathlib.Path`` does.

    Objects appear whole and stay when a write returns. Methods raise what obstore raises, and
    ``FileNotFoundError``.

    Attributes:
        bucket: Name of the bucket.
        key: Key or prefix, without slashes around it.
    """

    bucket: str
    key: str

    @classmethod
    def parse(cls, url: str) -> "S3Path":
        """Take ``s3://bucket/prefix`` apart.

        Raises:
            ValueError: If it is something else.
        """
        match = URL.fullmatch(url)
        if match is None:
            raise ValueError("expected s3://bucket/prefix; keys go into AWS_ variables")
        return cls(match[1], (match[2] or "").strip("/"))

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"

    def __truediv__(self, name: str) -> "S3Path":
        return S3Path(self.bucket, f"{self.key}/{name}".strip("/"))

    def __rtruediv__(self, _folder: Path) -> "S3Path":
        """Stay what it is, as an absolute path does in any folder."""
        return self

    @property
    def name(self) -> str:
        """The key's last part."""
        return PurePosixPath(self.key).name

    @property
    def parent(self) -> "S3Path":
        """The prefix without its last part."""
        return S3Path(self.bucket, self.key.rpartition("/")[0])

    def resolve(self) -> "S3Path":
        """Return it as it is: it depends on no working folder."""
        return self

    def is_dir(self) -> bool:
        """Whether there is an object under this prefix."""
        return next(self.objects(), None) is not None

    def objects(self) -> Iterator[tuple[str, float]]:
        """Keys under this prefix, relative to it, and when each was written (Unix time)."""
        skipped = len(self.key) + 1 if self.key else 0
        for found in obstore.list(_client(self.bucket), self.key or None):
            for item in found:
                yield item["path"][skipped:], item["last_modified"].timestamp()

    def read_bytes(self) -> bytes:
        """Read a small object."""
        return obstore.get(_client(self.bucket), self.key).bytes().to_bytes()

    def write_bytes(self, data: bytes) -> None:
        """Write an object, replacing it if it is there."""
        obstore.put(_client(self.bucket), self.key, data)

    def delete(self) -> None:
        """Delete an object; one that is not there is no error."""
        obstore.delete(_client(self.bucket), self.key)


def folder_at(place: str) -> Path | S3Path:
    """Tell a URL from a folder's path.

    Raises:
        ValueError: If it begins as a URL and is none.
    """
    return S3Path.parse(place) if place.startswith(SCHEME) else Path(place)


def _parsed(value: object) -> Path | S3Path:
    if isinstance(value, Path | S3Path):
        return value
    if not isinstance(value, str):
        raise ValueError("expected a folder or s3://bucket/prefix")  # noqa: TRY004  pydantic's way
    return folder_at(value)


LogFolder = Annotated[
    Path | S3Path,
    PlainValidator(_parsed),
    PlainSerializer(str, return_type=str, when_used="json"),
]


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A Parquet file in a table's folder, whether a version counts it or not.

    Attributes:
        path: Relative to the table's folder.
        written_at: Unix time.
    """

    path: str
    written_at: float

    @property
    def day(self) -> str:
        """The partition it lies in."""
        return PurePosixPath(self.path).parent.name.removeprefix("day=")


def data_files(folder: LogFolder) -> list[FoundFile]:
    """Every Parquet file that lies in a table's folder now."""
    if isinstance(folder, S3Path):
        return [
            FoundFile(path, written_at)
            for path, written_at in folder.objects()
            if path.startswith("day=") and path.endswith(".parquet")
        ]
    return [
        FoundFile(str(path.relative_to(folder)), path.stat().st_mtime)
        for path in folder.glob("day=*/*.parquet")
    ]


def left_behind(folder: LogFolder, paths: AbstractSet[str], now: float) -> set[str]:
    """Files, of some in a table's folder that no version counts, that none is about to count.

    On a disk those are all, since whoever asks holds the log's lock; in a bucket those that are
    too old, at the Unix time ``now``, to be on their way.
    """
    if isinstance(folder, Path):
        return set(paths)
    begun = now - UPLOAD_SECONDS
    return {
        file.path for file in data_files(folder) if file.path in paths and file.written_at < begun
    }


def remove_file(path: LogFolder) -> None:
    """Remove a file, if it is still there."""
    if isinstance(path, S3Path):
        path.delete()
    else:
        path.unlink(missing_ok=True)


def delta_options(folder: LogFolder) -> dict[str, str] | None:
    """What deltalake must be told of a store: to never replace a transaction, to give up in time.

    Plain http is used only where ``AWS_ENDPOINT_URL`` says so.
    """
    if isinstance(folder, Path):
        return None
    return {
        "aws_allow_http": "true",
        "aws_conditional_put": "etag",
        "max_retries": f"{MAX_RETRIES}",
        "retry_timeout": f"{RETRY_SECONDS}s",
    }


def complaint(folder: LogFolder, error: Exception) -> str:
    """Say in one line what a store refused, and what to do."""
    if isinstance(folder, Path):
        return f"{folder}: {error}"
    return f"{folder}: {' '.join(NOISE.sub('', str(error)).split())}; {HINT}"


@functools.cache
def _client(bucket: str) -> S3Store:
    """The process's connections to a bucket, with the limits of ``delta_options``."""
    return S3Store(
        bucket,
        client_options={"allow_http": True},
        retry_config={
            "max_retries": MAX_RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        },
    )
