"""Commands on API keys: `keys create`, `keys list`, `keys revoke`, `keys generate`."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from muster.cli.session import Session

AsJson = Annotated[bool, typer.Option("--json", help="Print the REST interface's JSON.")]


def add_to(app: typer.Typer) -> None:
    """Registers the group."""
    keys = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=False)
    keys.command("create")(create)
    keys.command("list")(list_keys)
    keys.command("revoke")(revoke)
    keys.command("generate")(generate)
    app.add_typer(keys, name="keys")


def create(
    ctx: typer.Context,
    role: Annotated[str, typer.Option(help="viewer, submitter, operator or admin.")] = "submitter",
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires_in: Annotated[
        str | None, typer.Option(help="E.g. 30d; for ever when left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key. It is shown this once: only its hash is kept."""
    session: Session = ctx.obj
    body = {"role": role, "name": name} | ({"expires_in": expires_in} if expires_in else {})
    # A key made twice would leave one behind that nobody knows.
    answer = session.rest.post("/v1/keys", body, repeatable=False)
    if as_json:
        session.print_json(answer)
    else:
        print(answer["key"])


def list_keys(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the API keys, without their secrets."""
    session: Session = ctx.obj
    answer = session.rest.get("/v1/keys")
    if as_json:
        session.print_json(answer)
        return
    from muster.cli.show import local_time, table  # noqa: PLC0415

    table(
        ("KEY", "ROLE", "NAME", "CREATED", "LAST USED", "STATE"),
        (
            (
                item["id"],
                item["role"],
                item.get("name"),
                local_time(item.get("created_at")),
                local_time(item.get("last_used_at")),
                "revoked" if item.get("revoked_at") else "",
            )
            for item in answer["items"]
        ),
        empty="no keys",
    )


def generate() -> None:
    """Print a new key of the form that a gateway's MUSTER_BOOTSTRAP_KEY_FILE holds.

    Nothing is registered: the gateway that starts with the file makes it an admin's key.
    """
    from muster.local.state import new_api_key  # noqa: PLC0415

    print(new_api_key())


def revoke(
    ctx: typer.Context,
    ident: Annotated[str, typer.Argument(metavar="ID", help="The id between the underscores.")],
    as_json: AsJson = False,
) -> None:
    """Revoke an API key; it opens nothing any more."""
    session: Session = ctx.obj
    answer = session.rest.delete(f"/v1/keys/{quote(ident, safe='')}")
    if as_json:
        session.print_json(answer)
    else:
        print(f"{ident} revoked")
