"""`everline token`: lets somebody in over HTTP."""

from pathlib import Path

import click

from ...deploy.tokens import RIGHTS, make_token
from ..files import FilePath


@click.command()
@click.argument("name")
@click.option("--tokens", type=FilePath(), default="tokens.yaml", show_default=True, help="The file of tokens.")
@click.option(
    "--may", type=click.Choice(RIGHTS), multiple=True, default=RIGHTS, help="A right, or several; all unless told."
)
def token(name: str, tokens: Path, may: tuple[str, ...]) -> None:
    """Make a token for NAME, and print it once: the file keeps only its hash.

    Who has it sends it as `Authorization: Bearer TOKEN`. A camera that is to teach its line needs one that may
    inspect. To take it back, remove the entry from the file.
    """
    click.echo(make_token(tokens, name, may))
    click.echo(f"{name} may {', '.join(may)}; {tokens} has the token's hash. It is not shown again.", err=True)
