"""The whole process: signals, kill -9, TLS, a bundle that is replaced, a disk that is full."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from pulse_edge.errors import UserError
from pulse_edge.runtimes.serve.audit import NAME, check
from pulse_edge.runtimes.serve.clock import Clock
from pulse_edge.runtimes.serve.service import Service
from pulse_edge.runtimes.serve.settings import Settings
from pulse_edge.runtimes.serve.shelf import PAGE, PHOTO
from pulse_edge.runtimes.serve.studies import Studies

from .conftest import Running

TOKEN = "a-token-of-some-length"


def send(url: str, picture: bytes, **options: Any) -> httpx.Response:
    return httpx.post(
        f"{url}/v1/ecg", files={"image": ("a.png", picture)}, data={"capture": "off"}, timeout=60, **options
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(
    start: Callable[..., Running], picture: bytes, data: Path, number: int
) -> None:
    server = start()
    study = send(server.url, picture).json()
    server.process.send_signal(number)
    assert server.process.wait(20) == 0
    assert server.process.stdout is not None
    assert server.process.stdout.read() == b""  # the one line of JSON was read at the start
    assert not list(data.glob("*-wal"))
    found = check(data / NAME)
    assert found.problem is None
    assert json.loads((data / NAME).read_text().splitlines()[-1])["event"] == "stop"
    studies = Studies(data, Clock())
    assert studies.get(study["id"]) == study
    studies.close()


def test_kill_9_under_load_loses_no_acknowledged_study(
    start: Callable[..., Running], picture: bytes, data: Path
) -> None:
    acknowledged: list[dict[str, Any]] = []
    for _ in range(2):  # and once more on what the first left
        server = start()
        enough = threading.Event()

        def post(url: str = server.url, enough: threading.Event = enough) -> None:
            try:
                while True:
                    answer = send(url, picture)
                    if answer.status_code == 200:
                        acknowledged.append(answer.json())
                    if len(acknowledged) >= 6:
                        enough.set()
            except httpx.HTTPError:
                return  # killed

        threads = [threading.Thread(target=post) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert enough.wait(60)
        server.process.kill()
        for thread in threads:
            thread.join(60)
        server.close()
    studies = Studies(data, Clock())
    for study in acknowledged:
        assert studies.get(study["id"]) == study
        assert studies.picture(study["id"], PHOTO)[0] == picture
        assert studies.picture(study["id"], PAGE)[0]
    assert len({study["number"] for study in acknowledged}) == len(acknowledged)
    remembered = studies.remembered_log()
    studies.close()
    found = check(data / NAME, remembered)
    assert found.problem is None
    stored = [
        line["study"] for line in map(json.loads, (data / NAME).read_text().splitlines()) if "record" in line
    ]
    assert {study["id"] for study in acknowledged} <= set(stored)
    assert not list((data / "pictures").glob(".*"))


def test_two_services_do_not_share_a_folder(paced: TestClient, pace: Any, data: Path) -> None:
    with pytest.raises(UserError, match="Another service uses"):
        Service(Settings(data), lambda: pace)
    assert paced.get("/v1/studies").status_code == 200


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own for 127.0.0.1."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cart")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


def test_beyond_loopback_with_token_and_tls(start: Callable[..., Running], tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    options = ("--host", "0.0.0.0", "--token-file", str(tmp_path / "token"))
    server = start(*options, "--tls-cert", str(cert), "--tls-key", str(key), wait=False)
    url = server.url.replace("0.0.0.0", "127.0.0.1")
    assert url.startswith("https://")
    trust = ssl.create_default_context(cafile=cert)
    server.url = url
    server.wait(verify=trust)
    assert httpx.get(f"{url}/v1/studies", verify=trust).status_code == 401
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert httpx.get(f"{url}/v1/studies", verify=trust, headers=bearer).status_code == 200
    with pytest.raises(httpx.HTTPError):
        httpx.get(url.replace("https", "http"))


def test_it_ends_when_its_link_leads_to_another_sound_bundle(
    start: Callable[..., Running], small_bundle: Path, tmp_path: Path
) -> None:
    other, link = tmp_path / "other", tmp_path / "current"
    shutil.copytree(small_bundle, other)
    link.symlink_to(small_bundle)
    server = start("--follow", bundle=link)
    link.with_name("next").symlink_to(other)
    os.replace(link.with_name("next"), link)
    assert server.process.wait(30) == 0


def test_a_replaced_bundle_is_refused(
    start: Callable[..., Running], own_bundle: Path, small_bundle: Path, picture: bytes
) -> None:
    server = start(bundle=own_bundle)
    assert send(server.url, picture).status_code == 200
    shutil.rmtree(own_bundle)
    shutil.copytree(small_bundle, own_bundle)  # the same content, but who knows
    answer = send(server.url, picture)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "bundle_changed"


def test_a_damaged_database_is_a_clear_state(
    start: Callable[..., Running], data: Path, picture: bytes
) -> None:
    server = start()
    send(server.url, picture)
    server.process.terminate()
    server.process.wait(20)
    path = data / "studies.sqlite3"
    path.write_bytes(b"\0" * path.stat().st_size)
    server = start(wait=False)
    end = time.monotonic() + 30
    while (state := httpx.get(f"{server.url}/healthz")).json()["state"] == "loading":
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (state.status_code, state.json()["state"]) == (503, "database_damaged")
    assert send(server.url, picture).json()["error"]["code"] == "database_damaged"
    assert httpx.get(f"{server.url}/v1/studies").status_code == 503
    assert (data / "damaged-1" / "studies.sqlite3").is_file()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts a disk")
def test_a_disk_that_fills_up_and_is_freed(
    start: Callable[..., Running], picture: bytes, page_file: Path, tmp_path: Path
) -> None:
    """A real small disk: studies until nothing fits, none of them half, and on once there is space."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("this container mounts nothing")
    try:
        server = start(data=disk / "data")
        ballast = disk / "ballast"
        ballast.write_bytes(b"\0" * 2_000_000)
        photo = page_file.read_bytes()
        stored, refused = [], None
        while refused is None and len(stored) < 20:
            answer = send(server.url, photo)
            if answer.status_code == 200:
                stored.append(answer.json())
            else:
                refused = answer
        assert refused is not None
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "disk_full")
        state = httpx.get(f"{server.url}/healthz")
        assert (state.status_code, state.json()["state"]) == (503, "disk_full")
        assert httpx.get(f"{server.url}/v1/studies").json()["studies"] == stored[::-1]
        assert len(list((disk / "data" / "pictures").iterdir())) == len(stored)
        ballast.unlink()
        end = time.monotonic() + 20
        while send(server.url, photo).status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.2)
        server.process.terminate()
        assert server.process.wait(20) == 0
        assert check(disk / "data" / NAME).problem is None
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_photo_that_is_too_large_is_told_so(start: Callable[..., Running]) -> None:
    """Not by a connection that is reset while the client still sends."""
    answer = send(start("--max-photo-mb", "1").url, b"x" * 8_000_000)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"


def test_an_upload_that_breaks_off_is_no_failure_and_holds_nothing(
    start: Callable[..., Running], picture: bytes, data: Path
) -> None:
    server = start("--queue", "1")
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /v1/ecg HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    for _ in range(3):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}Content-Length: 100000\r\n\r\n--x\r\n".encode())
    end = time.monotonic() + 20
    while send(server.url, picture).status_code != 200:  # 429 until the server has seen them go
        assert time.monotonic() < end
        time.sleep(0.05)
    assert "failure" not in server.log.read_text()
    assert len(list((data / "pictures").iterdir())) == 1
