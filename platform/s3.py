"""A log's folder in an S3 bucket: conditional PUTs are its commits, and every append is an object of its own.

Where the bucket is, who asks and with what key is found as boto3 finds it (environment, profile, role of the
machine), and handed on to Arrow's filesystem, which reads the shards. Every request has a time limit and few tries.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.fs
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from .volume import Away, Growing, S3Path, Volume

CONNECT_S, READ_S, TRIES = 3.0, 5.0, 3
AT_ONCE = 8  # parts that are read at the same time
MISSING = {"NoSuchKey", "404", "NotFound"}
TAKEN = {"PreconditionFailed", "412"}
BUSY = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "InternalError", "ServiceUnavailable"}
CONFLICT = "ConditionalRequestConflict"


class S3Volume(Volume):
    """Objects whose keys begin with a prefix."""

    remote = True

    def __init__(self, where: S3Path) -> None:
        self.where = where

    def names(self, prefix: str = "") -> list[str]:
        """Also the parts of segments."""
        return [name for name, _ in self._listed(prefix)]

    def folders(self) -> list[str]:
        """What there are objects in."""
        start = self._key("")
        with _translated(self.where):
            pages = (
                _client()
                .get_paginator("list_objects_v2")
                .paginate(Bucket=self.where.bucket, Prefix=start, Delimiter="/")
            )
            found = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", ())]
        return [key.removeprefix(start).rstrip("/") for key in found]

    def sizes(self, names: Sequence[str]) -> list[int]:
        """By listing where there are many."""
        if len(names) <= 2:
            return [self._ask("head_object", name)["ContentLength"] for name in names]
        shared = os.path.commonprefix([min(names), max(names)])  # noqa: RUF071 - of letters, not of folders
        known = dict(self._listed(shared))
        for name in names:
            if name not in known:
                raise FileNotFoundError(2, "no such object", name)
        return [known[name] for name in names]

    def read(self, name: str) -> bytes:
        """At once."""
        with _translated(self.where, name):
            return _client().get_object(**self._at(name))["Body"].read()

    def open(self, name: str) -> pa.NativeFile:
        """Reads ranges, as they are asked for."""
        with _translated(self.where, name):
            files = _files(*_credentials())
        try:
            return files.open_input_file(f"{self.where.bucket}/{self._key(name)}")
        except OSError as error:
            raise self.fault(error) from error

    def create(self, name: str, data: bytes, half: str) -> None:
        """If-None-Match. Where the name is taken by these very bytes, an answer was lost, and this is it."""
        for left in reversed(range(TRIES)):
            try:
                self._ask("put_object", name, Body=data, IfNoneMatch="*")
                return
            except FileExistsError:
                try:
                    if self.read(name) == data:
                        return
                except FileNotFoundError:
                    pass
                raise
            except Away as error:  # two at once: one of them will be there
                if CONFLICT not in str(error) or not left:
                    raise

    def write(self, name: str, data: bytes) -> None:
        """One PUT: whole or not there."""
        self._ask("put_object", name, Body=data)

    def replace(self, name: str, data: bytes, half: str) -> None:
        """One PUT."""
        self.write(name, data)

    def sync(self) -> None:
        """An object that is there is durable."""

    def remove(self, name: str) -> None:
        """A segment's first part first: whoever lists it from then on sees that it is on its way out."""
        if not name.endswith(".log"):
            return self._remove([name])
        self._remove([part_name(name, 0)])
        return self._remove(self.names(name + "."))

    def remove_all(self) -> None:
        """Every object in it, and in its folders."""
        self._remove([name for name, _ in self._listed("", deep=True)])

    def superseded(self, name: str, following: str) -> bool:
        """One request: is there any of a later name?"""
        with _translated(self.where, name):
            found = _client().list_objects_v2(
                Bucket=self.where.bucket,
                Prefix=self._key(name.partition("-")[0] + "-"),
                StartAfter=self._key(name),
                MaxKeys=1,
            )
        return bool(found.get("KeyCount"))

    def start(self, name: str, head: bytes) -> Growing:
        """Part 0 is the head."""
        growing = S3Growing(self, name)
        growing.append(head)
        return growing

    def grown(self, name: str, at: int) -> tuple[bytes, int]:
        """Positions are numbers of parts; none may be missing. All are listed, the new ones read."""
        found = sorted(self.names(name + "."))
        if not found or found != [part_name(name, n) for n in range(len(found))]:
            raise FileNotFoundError(2, "a part of it is missing", name)
        if len(found) - at < 2:
            return b"".join(map(self.read, found[at:])), len(found)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return b"".join(pool.map(self.read, found[at:])), len(found)

    def fault(self, error: OSError) -> OSError:
        """What Arrow's filesystem says, in our words: `Away` where it is the network or the server."""
        return Away(5, f"Arrow: {error}") if "AWS Error" in str(error) else error

    def _listed(self, prefix: str, deep: bool = False) -> Iterator[tuple[str, int]]:
        start = self._key("")
        only = {} if deep else {"Delimiter": "/"}
        with _translated(self.where):
            for page in (
                _client()
                .get_paginator("list_objects_v2")
                .paginate(Bucket=self.where.bucket, Prefix=start + prefix, **only)
            ):
                for entry in page.get("Contents", ()):
                    yield entry["Key"].removeprefix(start), entry["Size"]

    def _remove(self, names: Sequence[str]) -> None:
        for first in range(0, len(names), 1000):
            keys = [{"Key": self._key(name)} for name in names[first : first + 1000]]
            with _translated(self.where):
                _client().delete_objects(Bucket=self.where.bucket, Delete={"Objects": keys, "Quiet": True})

    def _ask(self, what: str, name: str, **more: Any) -> Any:
        with _translated(self.where, name):
            return getattr(_client(), what)(**self._at(name), **more)

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self.where.bucket, "Key": self._key(name)}

    def _key(self, name: str) -> str:
        return f"{self.where.key}/{name}" if self.where.key else name


class S3Growing(Growing):
    """Part after part. The same part is only ever written with the same bytes, so writing it again does no harm."""

    def __init__(self, volume: S3Volume, name: str) -> None:
        self._volume, self._name, self._next = volume, name, 0

    def append(self, data: bytes) -> None:
        """One PUT."""
        self._volume.write(part_name(self._name, self._next), data)
        self._next += 1

    def cut(self, length: int) -> bool:
        """A PUT that was given up may come to be at any time from now on."""
        return False

    def close(self) -> None:
        """Nothing is held."""


def part_name(segment: str, number: int) -> str:
    """Of the object that holds a segment's append."""
    return f"{segment}.{number:012d}"


def _client() -> Any:
    return _made_client(
        os.getpid(),
        os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL")),
        CONNECT_S,
        READ_S,
        TRIES,
    )


@lru_cache(maxsize=8)
def _made_client(pid: int, endpoint: str | None, connect_s: float, read_s: float, tries: int) -> Any:
    """One for a process: a fork must not share its connections."""
    config = Config(
        connect_timeout=connect_s,
        read_timeout=read_s,
        retries={"mode": "standard", "total_max_attempts": tries},
        max_pool_connections=2 * AT_ONCE,
    )
    return boto3.session.Session().client("s3", config=config)


def _credentials() -> tuple[Any, ...]:
    """What Arrow must know: (process, endpoint, region, key, secret, token), as they are now."""
    client = _client()
    found = client._request_signer._credentials
    if found is None:
        raise NoCredentialsError
    frozen = found.get_frozen_credentials()
    return os.getpid(), client.meta.endpoint_url, client.meta.region_name, *frozen[:3]


@lru_cache(maxsize=8)
def _files(pid: int, endpoint: str, region: str, key: str, secret: str, token: str | None) -> pyarrow.fs.S3FileSystem:
    scheme, _, host = endpoint.partition("://")
    return pyarrow.fs.S3FileSystem(
        access_key=key,
        secret_key=secret,
        session_token=token,
        region=region,
        scheme=scheme,
        endpoint_override=host,
        connect_timeout=CONNECT_S,
        request_timeout=READ_S,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=TRIES),
    )


@contextmanager
def _translated(where: S3Path, name: str = "") -> Iterator[None]:
    """boto's errors as those of a file system."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in MISSING:
            raise FileNotFoundError(2, "no such object", name) from error
        if code in TAKEN:
            raise FileExistsError(17, "the name is taken", name) from error
        if code in BUSY or code == CONFLICT or status >= 500 or status in (408, 429):
            raise Away(5, f"S3 cannot now: {error}") from error
        raise OSError(5, f"S3 refuses: {error}") from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise OSError(13, f"no key for S3: {error}") from error
    except BotoCoreError as error:
        raise Away(5, f"S3 does not answer: {error}") from error
