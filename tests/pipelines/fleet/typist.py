"""Types commands of everline in one process, which imports torch once.

A JSON list of words on each line of its input is answered by {"code", "out", "err"} on a line of its output.
"""

import contextlib
import io
import json
import sys

from everline.methods.errors import ConfigError, EverlineError
from everline.pipelines.main import cli


def typed(words: list[str]) -> int:
    try:
        cli.main(words, standalone_mode=False)
    except SystemExit as ended:
        return int(ended.code or 0)
    except EverlineError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def main() -> None:
    for line in sys.stdin:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = typed(json.loads(line))
        print(json.dumps({"code": code, "out": out.getvalue(), "err": err.getvalue()}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
