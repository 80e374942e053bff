"""A signal that Python drops still stops the job before anything becomes final."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from pulse_edge import interrupt
from pulse_edge.bundle import atomic_folder, write_atomic


class Finaliser:
    """Is stopped where an exception cannot leave: in ``__del__``."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        for _ in range(1000):  # the handler runs between two of these steps
            pass


def lose(number: int) -> None:
    item = Finaliser(number)
    del item


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_folder_does_not_appear(tmp_path, capfd, number) -> None:
    def job() -> None:
        with interrupt.heard(), atomic_folder(tmp_path / "bundle") as work:
            (work / "file").write_text("content")
            lose(number)

    with pytest.raises(KeyboardInterrupt):
        job()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_a_file_does_not_appear(tmp_path) -> None:
    with interrupt.heard():
        lose(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            write_atomic(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_each_command_begins_anew_and_leaves_the_handlers_as_they_were(tmp_path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupt.heard():
        lose(signal.SIGINT)
    with interrupt.heard():
        write_atomic(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_background_job_goes_on_ignoring_ctrl_c(tmp_path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.heard():
            os.kill(os.getpid(), signal.SIGINT)
            write_atomic(tmp_path / "file", b"content")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "file").exists()


def test_another_thread_is_left_alone() -> None:
    seen = []

    def work() -> None:
        with interrupt.heard():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
