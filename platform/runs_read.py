"""Runs that MLflow holds, read back: those of an experiment, one by its id, and the texts kept with them.

What is read was written by whoever can write to the store: it is found and measured here, and checked by the caller.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..methods.errors import ConfigError, DataError, TrackingError, UnknownName
from .tracking import answering, artifacts_at, connect, or_none, public

SHORTEST, WHOLE = 8, 32  # hexadecimal digits of a run's id that are enough, and all of them
PAGE = 200
FINISHED = "FINISHED"


def finished_runs(uri: str, experiment: str) -> list[str]:
    """The ids of the runs of an experiment that ended well, children too, oldest first; no deleted ones.

    Raises UnknownName for an experiment that is not there, TrackingError, ConfigError (a wrong address).
    """
    with answering(f"could not list the runs of {experiment!r}", uri):
        client = connect(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            names = [one.name for one in client.search_experiments()]
            raise UnknownName.among(public(uri), "experiment", experiment, names)
        ended = f"attributes.status = '{FINISHED}'"
        order = ["attributes.start_time ASC", "attributes.run_id ASC"]
        return [run.info.run_id for run in _search(client, [found.experiment_id], ended, order)]


def find_run(uri: str, prefix: str) -> str:
    """The id of the run that starts with these 8 to 32 hexadecimal digits, whatever its experiment.

    Raises UnknownName where no run does, ConfigError where several do, TrackingError for a run that did not end well
    or was deleted: a record of it may be half of one.
    """
    with answering(f"could not look up the run {prefix}", uri):
        client = connect(uri)
        known = _whole(client, prefix) if len(prefix) == WHOLE else _starting(client, prefix)
        if not known:
            said = "give an id, or 8 of its digits or more, as MLflow shows it"
            raise UnknownName(f"{public(uri)}: there is no run {prefix}; {said}.")
        if len(known) > 1:
            ids = ", ".join(run.info.run_id for run in known)
            raise ConfigError(f"{public(uri)}: several runs start with {prefix} ({ids}); give more digits.")
        (info,) = (run.info for run in known)
        if info.lifecycle_stage != "active" or info.status != FINISHED:
            how = "deleted" if info.lifecycle_stage != "active" else info.status
            raise TrackingError(f"{public(uri)}: the run {info.run_id} is {how}; only finished ones can be read.")
    return str(info.run_id)


def run_text(uri: str, run_id: str, name: str, most: int) -> str | None:
    """The text that a run keeps under a file's name; None where it keeps none.

    Raises DataError for more than `most` bytes, and what is no UTF-8; TrackingError.
    """
    who = f"run {run_id}: {name}"
    with answering(f"could not read {name} of the run {run_id}", uri), tempfile.TemporaryDirectory() as scratch:
        client = connect(uri)
        artifacts = artifacts_at(client, uri, client.get_run(run_id).info.artifact_uri)
        listed = (one for one in artifacts.list_artifacts() if one.path == name and not one.is_dir)
        kept = next(listed, None)
        if kept is None:
            return None
        _check_size(who, kept.file_size or 0, most)  # before it is fetched; some stores do not say
        file = Path(artifacts.download_artifacts(name, scratch))
        _check_size(who, file.stat().st_size, most)
        data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{who}: not text in UTF-8: {error}.") from error


def _check_size(who: str, size: int, most: int) -> None:
    if size > most:
        raise DataError(f"{who}: {size:,} bytes; at most {most:,} are read.")


def _whole(client: Any, run_id: str) -> list[Any]:
    run = or_none(lambda: client.get_run(run_id), "RESOURCE_DOES_NOT_EXIST")
    return [] if run is None else [run]


def _starting(client: Any, prefix: str) -> list[Any]:
    """At most a page of those that are not deleted: more than one are too many."""
    every = [one.experiment_id for one in client.search_experiments()]
    return list(client.search_runs(every, f"attributes.run_id LIKE '{prefix}%'", max_results=5)) if every else []


def _search(client: Any, experiments: list[str], wanted: str, order: list[str]) -> Iterator[Any]:
    """MLflow's entities, page by page."""
    token = None
    while True:
        page = client.search_runs(experiments, wanted, max_results=PAGE, order_by=order, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
