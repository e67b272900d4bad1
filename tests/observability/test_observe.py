"""`gaggle observe` as a person runs it."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from cli.binaries.build import Progress
from cli.binaries.prometheus import prometheus
from cli.binaries.zipkin import zipkin


async def test_it_runs_both_until_it_is_told_to_stop(
    progress: Progress, free_port: Callable[[], int], tmp_path: Path
) -> None:
    """One command brings Prometheus and Zipkin up on loopback, says where, and leaves nothing behind."""
    prometheus(progress)
    zipkin(progress)
    ports = free_port(), free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "observe", "--data", str(tmp_path)),
        *("--prometheus-port", str(ports[0]), "--zipkin-port", str(ports[1])),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        said = [(await process.stdout.readline()).decode() for _ in range(3)]
        children = psutil.Process(process.pid).children(recursive=True)
        async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
            ready = await client.get(f"http://127.0.0.1:{ports[0]}/-/ready")
            health = await client.get(f"http://127.0.0.1:{ports[1]}/health")
        listening = {
            (one.laddr.ip.removeprefix("::ffff:"), one.laddr.port)
            for child in children
            for one in child.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN
        }
    finally:
        process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(process.wait(), 60)

    assert said[0] == f"Prometheus: http://127.0.0.1:{ports[0]}\n"
    assert said[1] == f"Zipkin: http://127.0.0.1:{ports[1]}\n"
    assert f"GAGGLE_ZIPKIN_ENDPOINT=http://127.0.0.1:{ports[1]}/api/v2/spans" in said[2]
    assert (ready.status_code, health.status_code) == (200, 200)
    assert listening == {("127.0.0.1", port) for port in ports}
    assert code == 0
    assert not [one for one in children if one.is_running()]
