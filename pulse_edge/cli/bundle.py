"""`pulse-edge bundle …`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pulse_edge.cli.base import Json, app, print_json, steps

group = typer.Typer(help="Sign, compare, pack and install bundles.", rich_markup_mode=None)
app.add_typer(group, name="bundle")


@group.callback(invoke_without_command=True)
def _main(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


Bundle = Annotated[Path, typer.Argument(help="Folder of the bundle.")]
Into = Annotated[Path, typer.Option(help="Folder of the installation.")]
Key = Annotated[Path, typer.Option(help="Private key.")]
RequireKey = Annotated[Path | None, typer.Option(help="Public key that must have signed.")]


@group.command("keygen")
def bundle_keygen(
    key: Annotated[Path, typer.Argument(help="File of the private key; the public one gets .pub.")],
    as_json: Json = False,
) -> None:
    """Make a key pair to sign bundles with."""
    from pulse_edge import commands

    result = commands.bundle_keygen(key)
    if as_json:
        print_json(result)
        return
    typer.echo(f"private key  {result['key']}  (keep it; whoever has it can sign)")
    typer.echo(f"public key   {result['public']}  (for devices; fingerprint {result['fingerprint']})")


@group.command("sign")
def bundle_sign(bundle: Bundle, key: Key, as_json: Json = False) -> None:
    """Sign a bundle: Ed25519 over the digest of its manifest."""
    from pulse_edge import commands

    result = commands.bundle_sign(bundle, key)
    if as_json:
        print_json(result)
    else:
        typer.echo(f"signed       {result['bundle']}  (key {result['fingerprint']})")


@group.command("diff")
def bundle_diff(
    a: Annotated[Path, typer.Argument(help="A bundle.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
    as_json: Json = False,
) -> None:
    """Say what changed between two bundles."""
    from pulse_edge import commands

    result = commands.bundle_diff(a, b)
    if as_json:
        print_json(result)
        return
    if result["same"]:
        typer.echo("The bundles are the same.")
    for section, rows in result["changes"].items():
        typer.echo(section)
        for row in rows:
            typer.echo(f"  {row['what'] or section}: {_short(row['a'])} -> {_short(row['b'])}")


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) == 64 and all(digit in "0123456789abcdef" for digit in text):  # a hash: its start tells
        return text[:12]
    return text if len(text) <= 100 else f"{text[:97]}…"


@group.command("kit")
def bundle_kit(
    bundle: Bundle,
    output: Annotated[Path, typer.Option(help="The archive, a .tar.")],
    wheels: Annotated[Path | None, typer.Option(help="Take all wheels from here; no network.")] = None,
    machine: Annotated[str, typer.Option(help="The device's: aarch64 or x86_64.")] = "aarch64",
    python: Annotated[str, typer.Option(help="The device's version of Python.")] = "3.10",
    also: Annotated[list[str] | None, typer.Option(help="A further requirement, as pip takes it.")] = None,
    key: Annotated[Path | None, typer.Option(help="Private key to sign the kit with.")] = None,
    service: Annotated[bool, typer.Option("--service", help="Also what a cart's service needs.")] = False,
    as_json: Json = False,
) -> None:
    """Pack a bundle with all that a device without a network needs; downloads wheels."""
    from pulse_edge import commands

    with steps(not as_json) as report:
        result = commands.bundle_kit(
            bundle, output, wheels, machine, python, also or [], key, service, report
        )
    if as_json:
        print_json(result)
        return
    size, digest = f"{result['bytes'] / 1e6:.1f} MB", result["sha256"][:12]
    typer.echo(f"kit          {result['kit']}  ({size}, sha256 {digest})")
    typer.echo(f"wheels       {len(result['wheels'])} for Python {python} on {machine}")
    typer.echo(f"on a device  tar xf KIT.tar && sh install.sh DIR{' --service' if service else ''}")


@group.command("install")
def bundle_install(
    source: Annotated[Path, typer.Argument(help="A bundle, a kit, or an unpacked kit.")],
    into: Into,
    require_key: RequireKey = None,
    as_json: Json = False,
) -> None:
    """Install a bundle or kit and make it the current version."""
    from pulse_edge import commands

    _print_installed(commands.bundle_install(source, into, require_key), as_json)


@group.command("rollback")
def bundle_rollback(into: Into, require_key: RequireKey = None, as_json: Json = False) -> None:
    """Go back to the version that was current before."""
    from pulse_edge import commands

    _print_installed(commands.bundle_rollback(into, require_key), as_json)


def _print_installed(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(result)
        return
    typer.echo(f"current      {result['installed']}")
    typer.echo(f"before       {result['previous'] or 'the same, or none'}")
    if not result["engines"]:
        typer.echo(f"engines      none; on a Jetson: pulse-edge build {result['path']}")
    typer.echo(f"next         pulse-edge run {result['current']} --image PAGE.png")
