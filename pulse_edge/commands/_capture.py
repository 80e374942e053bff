"""`capture`: a photo of a paper ECG to a flat page and a grade."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pulse_edge.errors import UserError


def capture(
    image: Path | None = None,
    output: Path | None = None,
    grid: Path | None = None,
    camera: str | None = None,
    photo: Path | None = None,
    timeout: float | None = None,
    watch: Path | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Flatten a photo of a paper ECG by its own grid and grade it; or take the photo; or do so for a folder.

    Args:
        image: picture of an ECG; or
        camera: number of a camera, ``csi:0``, a GStreamer pipeline or a recording; or
        watch: folder in which pictures arrive, until Ctrl-C.
        output: the flat page is written there as PNG, unless the picture is refused.
        grid: the nodes of the mesh ``[x_px, y_px, x_mm, y_mm]`` are written there as JSON.
        photo: with ``camera``: the frame that was taken is written there as PNG.
        timeout: with ``camera``: give up after so many seconds.
        report: called with each sentence for the person at the camera, and with each picture of a folder.

    Returns:
        ``{"grade": "good" | "usable" | "refuse", "reasons": [...], "px_per_mm": [x, y], "rotation": degrees,
        "residual_mm": float | None, "timing_ms": {...}}``; for a folder
        ``{"watched": path, "good": n, "usable": n, "refuse": n}``.

    Raises:
        UserError: not exactly one of image, camera and watch, or options that do not go with it.
        ImageError: the picture cannot be read.
        PulseEdgeError: the camera showed no page, or a file cannot be written.
    """
    _check(image, output, grid, camera, photo, timeout, watch)
    if watch is not None:
        return _watch(Path(watch), report)
    from pulse_edge.runtimes.capture.quality import REFUSE
    from pulse_edge.runtimes.capture.take import png, take_file, write_grid, write_page

    if camera is not None:
        from pulse_edge.bundle import write_atomic
        from pulse_edge.runtimes.capture.camera import take_live

        shot = take_live(camera, report, timeout)
        taken = shot.taken
        if photo is not None:
            write_atomic(Path(photo), png(shot.image))
    else:
        taken = take_file(image or "")
    result = taken.result()
    if grid is not None:
        write_grid(taken, Path(grid))
    if output is not None and result["grade"] != REFUSE:
        write_page(taken, Path(output))
    return result


def _check(
    image: Path | None,
    output: Path | None,
    grid: Path | None,
    camera: str | None,
    photo: Path | None,
    timeout: float | None,
    watch: Path | None,
) -> None:
    if sum(source is not None for source in (image, camera, watch)) != 1:
        raise UserError("Name one source: a picture, or --camera 0, or --watch FOLDER.")
    if camera is None and (photo is not None or timeout is not None):
        raise UserError("--photo and --timeout belong to --camera. Leave them out.")
    if watch is not None and (output is not None or grid is not None):
        raise UserError("--watch writes beside each picture. Leave --output and --grid out.")
    if timeout is not None and not timeout > 0:
        raise UserError("--timeout must be more than 0 seconds.")
    for path in (output, grid, photo):
        if path is not None and Path(path).is_dir():
            raise UserError(f"{path} is a folder; a file is to be written there. Choose another name.")
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise UserError(f"There is no folder {Path(path).parent} for {Path(path).name}. Make it first.")
        if path is not None and image is not None and Path(path).absolute() == Path(image).absolute():
            raise UserError(f"{path} is the picture itself and would be overwritten. Choose another name.")


def _watch(folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
    from pulse_edge.runtimes.capture.quality import GRADES
    from pulse_edge.runtimes.capture.watch import watch

    counts = dict.fromkeys(GRADES, 0)

    def count(name: str, result: dict[str, Any]) -> None:
        counts[result["grade"]] += 1
        report(" ".join([f"{name}: {result['grade']}.", *result["reasons"]]))

    with suppress(KeyboardInterrupt):  # the usual end
        watch(folder, count)
    return {"watched": str(folder), **counts}
