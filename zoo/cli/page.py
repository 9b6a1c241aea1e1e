"""The web page: `zoo app`."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from zoo.cli.compare import Lists
from zoo.cli.shared import app

LOCAL = ("127.0.0.1", "localhost", "::1")


@app.command("app", cls=Lists)
def page(
    models: Annotated[
        list[str] | None, typer.Option("--models", metavar="MODEL ...", help="What to offer; all at hand unless given.")
    ] = None,
    adapters: Annotated[
        list[str] | None, typer.Option("--adapter", metavar="FILE", help="An adapter to offer; may be repeated.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 is for everyone who reaches this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port.")] = 7860,
    user: Annotated[str | None, typer.Option(help="Let in only who knows this name and the password.")] = None,
    password: Annotated[str | None, typer.Option(envvar="ZOO_APP_PASSWORD", help="The password of --user.")] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Visitors drawn for at a time; others wait their turn.")] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
) -> None:
    """Serve a web page: draw by several models side by side, watch pictures develop, edit them.

    It is for this machine only unless --host says otherwise, and loads nothing from the internet.

    \b
    zoo app
    zoo app --models stable-diffusion-small another/folder --adapter style.safetensors --port 8000
    ZOO_APP_PASSWORD=secret zoo app --host 0.0.0.0 --user me
    """
    if (user is None) != (password is None):
        raise ValueError("a login is a name and a password: give --user and --password (or ZOO_APP_PASSWORD)")
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs gradio: pip install -e '.[app]' in a checkout")
    from zoo.app.models import Models
    from zoo.app.page import build, launch

    blocks = build(Models(models or (), adapters or (), device=device), at_once=at_once)
    if host not in LOCAL and user is None:
        typer.echo("note: everyone who reaches this machine can use the page; --user and --password ask them", err=True)
    login = None if user is None or password is None else (user, password)
    _, url, _ = launch(blocks, server_name=host, server_port=port, auth=login, prevent_thread_lock=True)
    typer.echo(f"the page is at {url} (Ctrl+C ends it)")
    blocks.block_thread()
