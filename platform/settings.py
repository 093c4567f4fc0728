"""A fleet is one file: the settings table, and the reader that checks YAML against it."""

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..methods import params
from ..methods.errors import ConfigError, UnknownLine
from ..methods.params import param
from ..methods.registry import build
from .images import MAX_PIXELS
from .tracking import SQLITE, public, sqlite_uri
from .volume import Place, expanded, place_of
from .yamlfile import check_known, mapping, read_yaml

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
STORE, SPOOL = "everline-data", "everline-spool"
SAMPLE = "store: ./everline-data\nlines:\n  mono: {method: coreset}\n"


@dataclass(kw_only=True)
class LineSettings:
    """What a fleet file may say of one line; `params` are the method's own (see `everline methods`)."""

    method: str = param("coreset", "detector of the line")
    false_reject_rate: float = param(0.01, "share of good parts that may be rejected", low=0, high=0.5, open_low=True)
    publish_every: int = param(
        200, "learned images between two snapshots, once past 25, 50, 100", low=25, unit="images"
    )
    probation: int = param(
        25,
        "fresh images that a candidate scores before it may judge; more, where the rate needs them",
        low=1,
        unit="images",
    )
    checkpoint_every: int = param(100, "records between two checkpoints", low=1, unit="records")
    keep_days: float = param(
        0.0, "images older than this lose their bytes, not their records; 0: never", low=0, unit="days"
    )
    keep_images: int = param(0, "of so many newest records the images are kept; 0: of all", low=0, unit="records")
    keep_gib: float = param(0.0, "images may take so much room, roughly; 0: as much as they need", low=0, unit="GiB")
    keep_versions: int = param(
        20, "newest versions that are kept; besides those in use, pinned ones and one a day; 0: all", low=0
    )
    spool_mib: int = param(
        256, "of a line on S3: what may wait on the local disk while S3 is away; 0: nothing", low=0, unit="MiB"
    )
    drift: str = param(
        "adapt",
        "what a drift leads to: it is learned as usual from then on, nothing is learned, or it is only said",
        choices=("adapt", "hold", "alarm"),
    )
    gate: bool = param(True, "whether a version has to do well on remembered images before it is published")
    threads: int = param(
        1, "CPU threads of the line's detector; part of what makes a rebuild bit-equal", low=1, high=64
    )
    device: str = param("cpu", "where the detector computes: cpu, cuda, cuda:1, ...")
    gpus: float = param(
        0.0, "GPUs, or a share of one, that Ray reserves for the line; none while its device is cpu", low=0, high=64
    )
    place: str = param("", "resource of the nodes that the line may run on, as `ray start --resources` names it")
    queue: int = param(64, "images that may wait at the line", low=1, high=4096, unit="images")
    when_full: str = param(
        "wait",
        "what becomes of an image when so many wait: its caller waits, or it is dropped and counted",
        choices=("wait", "drop"),
    )
    max_megapixels: float = param(
        50.0, "an image of more pixels, by its header, is refused", low=1, high=MAX_PIXELS / 1e6, unit="megapixels"
    )
    bits: int = param(
        0,
        "bits in use in images of 16-bit files, as of a camera that has 12; 0: as the file says, else 16",
        choices=(0, 8, 10, 12, 14, 16),
    )
    params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "device" in self.params:
            raise ConfigError("params: device is a setting of the line, not of its method; put it one level up.")
        if self.params.get("bits", self.bits) != self.bits:
            raise ConfigError("params: bits is a setting of the line, not of its method; put it one level up.")
        if self.bits:  # what a version is made from says so too
            self.params = {**self.params, "bits": self.bits}
        if self.place and not NAME.fullmatch(self.place):
            raise ConfigError(f"place: {self.place!r} is no name of a resource.")
        detector = build(self.method, **self.params)  # refuses what the method does not know, before anything starts
        if not detector.learns_per_image:
            raise ConfigError(f"params: {self.method} with these cannot learn one image at a time, as a line does.")

    @property
    def max_pixels(self) -> int:
        """The most pixels of an image that comes; what is in the log already is read whatever its size."""
        return round(self.max_megapixels * 1e6)

    @property
    def resources(self) -> dict[str, float]:
        """What a node must have for the line: Ray's names, and how much of each."""
        gpus = {"GPU": self.gpus} if self.gpus and self.device != "cpu" else {}
        return {**gpus, **({self.place: 0.001} if self.place else {})}


@dataclass(kw_only=True)
class Fleet:
    """Lines by name, where they keep their logs, and where their versions are tracked."""

    store: Place
    tracking: str = field(repr=False)  # it may hold a password
    lines: dict[str, LineSettings]
    artifacts: str = ""  # where the versions' files go; empty: where the tracking store puts them
    spool: Path | None = None  # of lines on S3: where, on each machine, what cannot be written waits
    file: str = ""  # that it was read from, as HOST:PATH

    @property
    def places(self) -> dict[str, str]:
        """Where its lines keep what they know, to compare and to show: without passwords."""
        found = {"store": self.store, "tracking": public(self.tracking), "artifacts": self.artifacts}
        return {name: str(value) for name, value in {**found, "spool": self.spool or ""}.items()}

    def line(self, name: str) -> LineSettings:
        """The settings of a line. Raises UnknownLine with the lines there are."""
        if name not in self.lines:
            raise UnknownLine(
                f"unknown line {name[:80]!r}; this fleet has: {', '.join(sorted(self.lines)) or 'none'}."
            )
        return self.lines[name]


def read_fleet(path: Path) -> Fleet:
    """A fleet file; relative paths in it start at its own folder. Raises ConfigError, UnknownName."""
    plain = read_yaml(path, "fleet", SAMPLE)
    fleet = parse_fleet(plain, path.resolve().parent, str(path))
    return replace(fleet, file=f"{socket.gethostname()}:{path.resolve()}")


def parse_fleet(plain: Any, base: Path, who: str = "fleet") -> Fleet:
    """Checks what YAML gave. `base`: where relative paths start."""
    plain = mapping(plain, who)
    check_known(plain, ("store", "tracking", "artifacts", "spool", "lines"), who)
    lines = mapping(plain.get("lines", {}), f"{who}: lines")
    if not lines:
        raise ConfigError(f"{who}: no lines. A small fleet file:\n\n{SAMPLE}")
    store = place_of(_text(plain, "store", STORE, who), base)
    beside = store if isinstance(store, Path) else base / STORE  # a database needs a disk
    tracking = absolute_tracking(_text(plain, "tracking", default_tracking(beside), who), base)
    artifacts = _text(plain, "artifacts", "", who).rstrip("/")
    if artifacts and "://" not in artifacts:  # a folder that the machines share
        artifacts = (base / expanded(artifacts)).resolve().as_uri()
    spool = None if isinstance(store, Path) else (base / expanded(_text(plain, "spool", SPOOL, who))).resolve()
    parsed = {str(n): parse_line(str(n), s, who) for n, s in lines.items()}
    return Fleet(store=store, tracking=tracking, artifacts=artifacts, spool=spool, lines=parsed)


def default_tracking(store: Path) -> str:
    """Where versions and evaluations are tracked unless told otherwise: a database in the store, to start nothing."""
    return sqlite_uri(store / "mlflow.db")


def absolute_tracking(uri: str, base: Path) -> str:
    """A relative sqlite path starts at `base`: for a fleet, its file's folder, as every other path in it."""
    file, mark, options = uri.removeprefix(SQLITE).partition("?")
    if uri == uri.removeprefix(SQLITE) or file in ("", ":memory:"):  # no file: left to whoever opens it
        return uri
    return f"{sqlite_uri((base / expanded(unquote(file))).resolve())}{mark}{options}"


def parse_line(name: str, plain: Any, who: str = "fleet") -> LineSettings:
    """One line's entry; empty means all defaults."""
    where = f"{who}: line {name}"
    if not NAME.fullmatch(name):
        raise ConfigError(f"{where}: a line's name has 1 to 64 letters, digits, '-', '_', '.', none of them first.")
    given = dict(mapping(plain or {}, where))
    own = mapping(given.pop("params", {}) or {}, f"{where}: params")
    known = [row[0] for row in params.table(LineSettings)]
    check_known(given, (*known, "params"), where)
    return LineSettings(**params.parse(LineSettings, given, where), params=with_home(own))


def with_home(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's parameters, in which `~` of a file's name is the home folder. Raises ConfigError."""
    return {n: str(expanded(v)) if isinstance(v, str) and v.startswith("~") else v for n, v in params.items()}


def _text(plain: Mapping[str, Any], name: str, default: str, who: str) -> str:
    value = plain.get(name) or default
    if not isinstance(value, str):
        raise ConfigError(f"{who}: {name} must be text, got {value!r}.")
    return value
