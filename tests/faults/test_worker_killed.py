"""SIGKILL of a worker that computes: its ports close, and nothing of it stays behind."""

import signal
import socket
import threading
from pathlib import Path

import psutil
import pytest

from tests.support.worker_process import MINILM, WorkerProcess, wait_for


def test_a_killed_worker_leaves_nothing_behind(tmp_path: Path) -> None:
    with WorkerProcess(
        MINILM, "--max-backlog", "5m", "--timeout", "5m", environment={"TMPDIR": str(tmp_path)}
    ) as worker:
        worker.wait_ready()
        family = [psutil.Process(worker.process.pid)]
        family += family[0].children(recursive=True)
        outcome: list[bytes] = []

        def ask() -> None:
            texts = ",".join(f'"{"long words " * 100} {n}"' for n in range(100))
            body = f'{{"input":[{texts}]}}'.encode()
            with socket.create_connection(("127.0.0.1", worker.port), timeout=60) as link:
                head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}"
                link.sendall(head.encode() + b"\r\n\r\n" + body)
                try:
                    outcome.append(link.recv(1))
                except ConnectionResetError:
                    outcome.append(b"")

        asking = threading.Thread(target=ask)
        asking.start()
        wait_for(lambda: worker.metric("sluice_worker_running"))
        worker.process.send_signal(signal.SIGKILL)
        assert worker.wait_exit() == -signal.SIGKILL
        asking.join(60)
        assert outcome == [b""]  # cut off, not answered by half
        for port in (worker.port, worker.admin_port):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=60)
        wait_for(lambda: not any(process.is_running() for process in family))
        assert list(tmp_path.iterdir()) == []
