"""`pulse-edge doctor`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pulse_edge.cli.base import Json, app, print_json


@app.command()
def doctor(
    device: Annotated[bool, typer.Option("--device", help="Also what a report from a Jetson needs.")] = False,
    as_json: Json = False,
) -> None:
    """Say what is installed, what is missing, and the command that brings it."""
    from pulse_edge import commands

    result = commands.doctor(device)
    if as_json:
        print_json(result)
        return
    typer.echo(f"pulse-edge {result['pulse_edge']}, Python {result['python']}, {result['platform']}")
    typer.echo(f"{result['cores']} cores, {result['memory_gb']} GB; Jetson: {result['jetson'] or 'no'}")
    typer.echo(
        f"TensorRT: {result['tensorrt'] or 'not installed'}; models: {', '.join(result['models']) or 'none'}"
    )
    for package in result["packages"]:
        state = package["version"] or f"missing: {package['install']}"
        typer.echo(f"  {package['name']:24s}{package['extra'] or 'base':8s}{state}")
    if device:
        _print_device(result["device"])


def _print_device(found: dict[str, Any]) -> None:
    """Print what the board says; whoever reports a run sends the same as --json."""
    gpu, memory, power = found["gpu"] or {}, found["memory"] or {}, found["power_mode"] or {}
    rows = {
        "board": f"{found['model'] or 'not known'} {' '.join(found['modules'])} {found['soc'] or ''}",
        "profile": found["profile"],
        "L4T": found["l4t"],
        "JetPack": found["jetpack"],
        "TensorRT": f"{found['tensorrt'] or 'no package'}; in Python {found['tensorrt_python'] or 'none'}",
        "CUDA": f"{found['cuda'] or 'no toolkit'}; driver {gpu.get('driver') or 'none'}",
        "GPU": f"{gpu['name']}, SM {gpu['sm']}" if gpu else None,
        "power mode": power.get("name") or power.get("id"),
        "memory": f"{memory.get('available')} of {memory.get('total')} MB available" if memory else None,
        "swap": ", ".join(f"{row['on']} {row['total_mb']} MB" for row in found["swap"]) or "none",
        "clocks": ", ".join(f"{k} {v['now']} of {v['max']} MHz" for k, v in found["clocks_mhz"].items()),
    }
    for name, value in rows.items():
        typer.echo(f"  {name:12s}{'not known' if value in (None, '') else str(value).strip()}")
    for line in found["missing"]:
        typer.echo(f"  missing     {line}")
    typer.echo("To report a run on this device, send the output of: pulse-edge doctor --device --json")
