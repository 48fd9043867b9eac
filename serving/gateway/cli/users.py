"""Users: `serving users`: the people behind calls, and how one of them is erased."""

from __future__ import annotations

from typing import Annotated

import typer

from serving.gateway.cli.printing import AsJson, date, print_json, print_table, settings_of

#: People that one command lists.
LISTED_MAX = 10_000

users = typer.Typer(
    help="End users: the people behind calls, where tokens or services name them.", no_args_is_help=True
)


@users.command("list")
def list_users(
    context: typer.Context,
    tenant: Annotated[str | None, typer.Argument()] = None,
    subject: Annotated[str | None, typer.Option(help="One person alone, by the name that calls come with.")] = None,
    after: Annotated[str | None, typer.Option(help="Those behind this reference: the next page.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=LISTED_MAX, help="As many at most.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """List people with their references, which ledger and audit name them by."""
    from serving.gateway.audit import actors
    from serving.gateway.cli.opening import journalled
    from serving.gateway.identity.acts import Act, ActKind
    from serving.gateway.identity.people import people

    with journalled(settings_of(context)) as (store, journal):
        # Not whom: an erased person's name would stay here.
        journal.record(actors.at_command_line(), Act(ActKind.USERS_READ, "users", details={"tenant": tenant}))
        found = people(store, tenant=tenant, subject=subject, after=after, limit=limit)
    if as_json:
        print_json(found)
    else:
        rows = [(it.ref, it.tenant, it.subject, date(it.created_at)) for it in found]
        print_table(("REF", "TENANT", "SUBJECT", "FIRST SEEN"), rows)


@users.command("erase")
def erase_user(context: typer.Context, tenant: str, subject: str) -> None:
    """Erase a person: ledger and audit keep references and tokens, and nothing says any more who it was.

    What is stored of them is deleted, files and batches that they made included. Backups made before still say who it was, and log
    lines that clients' programs write.
    """
    from serving.gateway.cli.opening import audited
    from serving.gateway.identity.people import erase

    with audited(settings_of(context)) as (store, witness):
        refs = erase(store, tenant, subject, witness)
    typer.echo(f"Erased: {', '.join(refs)} of tenant {tenant} name no one any more.")
