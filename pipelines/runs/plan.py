"""A plan: which methods run under which protocols, as one YAML file.

    methods:
      padim: {}
      lemo-untrained: {method: lemo, params: {lr: 0, update: none}, protocols: [online]}
    protocols:
      online: {}
      four-shots: {protocol: offline, options: {shots: 4}, seeds: 3}

A name stands for the method or protocol of that name where none is given. Every method runs under every protocol, or
under those that its `protocols` lists.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...methods.errors import ConfigError, UnknownName
from ...platform.settings import with_home
from ...platform.yamlfile import check_known, mapping, read_yaml
from ..protocols.trial import Trial

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")  # also the name of a file
SAMPLE = "methods:\n  padim: {}\n  coreset: {}\nprotocols:\n  online: {}\n"

Names = tuple[str, str]  # of a protocol and of a method, as the plan calls them
Plan = dict[Names, Trial]  # what to run, in the order of the file


def read_plan(path: Path, given: Mapping[str, Any] | None = None) -> Plan:
    """The trials of a plan file; `given`: parameters for every method. Raises ConfigError, UnknownName."""
    who = str(path)
    plain = mapping(read_yaml(path, "plan", SAMPLE), who)
    check_known(plain, ("methods", "protocols"), who)
    methods, protocols = (_entries(plain, part, who) for part in ("methods", "protocols"))
    found = {}
    for where, protocol in protocols.items():
        check_known(protocol, ("protocol", "options", "seeds"), f"{who}: protocols: {where}")
        for name, method in methods.items():
            here = f"{who}: methods: {name}"
            check_known(method, ("method", "params", "protocols"), here)
            if where in _listed(method, protocols, here):
                found[where, name] = _trial(where, protocol, name, method, given or {}, f"{who}: {where}, {name}")
    return found


def _trial(
    where: str, protocol: Mapping[str, Any], name: str, method: Mapping[str, Any], given: Mapping[str, Any], who: str
) -> Trial:
    options = dict(mapping(protocol.get("options") or {}, f"{who}: options"))
    seeds = protocol.get("seeds", 1)
    if not isinstance(seeds, int) or isinstance(seeds, bool):
        raise ConfigError(f"{who}: seeds must be a whole number, got {seeds!r}.")
    params = {**with_home(mapping(method.get("params") or {}, f"{who}: params")), **given}
    try:
        return Trial(str(protocol.get("protocol", where)), str(method.get("method", name)), params, options, seeds)
    except ConfigError as error:
        raise ConfigError(f"{who}: {error}") from error


def _entries(plain: Mapping[str, Any], part: str, who: str) -> dict[str, Mapping[str, Any]]:
    entries = mapping(plain.get(part) or {}, f"{who}: {part}")
    if not entries:
        raise ConfigError(f"{who}: no {part}. A small plan file:\n\n{SAMPLE}")
    for name in entries:
        if not NAME.fullmatch(str(name)):
            raise ConfigError(f"{who}: {part}: a name has letters, digits, '-', '_', '.', '+', got {name!r}.")
    return {str(name): mapping(entry or {}, f"{who}: {part}: {name}") for name, entry in entries.items()}


def _listed(method: Mapping[str, Any], protocols: Mapping[str, Any], who: str) -> list[str]:
    """The protocols that a method runs under."""
    listed = method.get("protocols", list(protocols))
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{who}: protocols must be a list of names, got {listed!r}.")
    for name in listed:
        if name not in protocols:
            raise UnknownName.among(who, "protocol", str(name), protocols)
    return listed
