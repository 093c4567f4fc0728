"""Versions as they are typed: LINE@current, LINE@previous, LINE@candidate or LINE@7."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...methods.errors import ConfigError, UnknownVersion
from ...platform.line import Scorer
from ...platform.settings import Fleet
from ...platform.versions import NAME, Version, Versions

WORD = re.compile(rf"({NAME.pattern})@([A-Za-z][A-Za-z0-9_-]{{0,63}}|[0-9]{{1,9}})")
MOST = 6  # versions side by side


@dataclass(frozen=True)
class Subject:
    """A version that takes part. label: as it was typed. state_bytes: of all tensors that it learned."""

    label: str
    line: str
    version: Version
    scorer: Scorer
    state_bytes: int


def is_version(word: str) -> bool:
    """Whether a word names a version of a line, and no file that is there."""
    return bool(WORD.fullmatch(word)) and not Path(word).exists()


def load(words: Sequence[str], fleet: Fleet) -> list[Subject]:
    """The versions that words (see `is_version`) name, each ready to judge on its line's device.

    Raises ConfigError for fewer than two or too many, and for one under two names; UnknownLine, UnknownVersion,
    TrackingError, Corrupt.
    """
    if not 2 <= len(words) <= MOST:
        raise ConfigError(f"compare: takes 2 to {MOST} versions of lines, got {len(words)}.")
    found: dict[tuple[str, int], str] = {}
    listed = []
    for word in words:
        line, which = word.split("@")
        device, versions = fleet.line(line).device, Versions(fleet.tracking, line)
        version = resolve(line, which, versions.list())
        first = found.setdefault((line, version.version), word)
        if first is not word:
            raise ConfigError(f"compare: {first} and {word} are both version {version.version} of {line}.")
        listed.append((word, line, version, versions, device))
    return [_subject(*one) for one in listed]


def resolve(line: str, which: str, known: Sequence[Version]) -> Version:
    """The version with that number or alias. Raises UnknownVersion, saying which there are."""
    for one in known:
        if which in one.aliases or (which.isdigit() and int(which) == one.version):
            return one
    names = [f"{alias} ({one.version})" for one in known for alias in one.aliases]
    numbers = [str(one.version) for one in known[:20]]
    valid = f"valid: {', '.join([*names, *numbers])}" if known else "it has no version yet"
    raise UnknownVersion(f"line {line}: no version {which}; {valid}.")


def _subject(word: str, line: str, version: Version, versions: Versions, device: str) -> Subject:
    state, calibration = versions.load(version.version)
    return Subject(word, line, version, Scorer(version.version, state, calibration, device), state.nbytes)
