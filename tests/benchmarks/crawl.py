"""Crawling: img2dataset's own `download` beside `python -m pipeline crawl`, on the same server, the same pictures, and both cores.

    python -m tests.benchmarks.crawl [PICTURES]

10,000 JPEGs of 1024 x 768, drawn here, are served by nginx on the loopback (`apt-get install nginx-light`; without it by an aiohttp
server in a process of its own, which is slower and takes more of the cores), over http and then over https, as most of the web is.
img2dataset writes Parquet with 2 processes of 64 threads; ours is the command line from the URL table to the committed crawl, 8 units on 2
workers, once without perceptual hashes and once with. Same output: keep_ratio 256, JPEG 95. For https both trust the certificates that
Python trusts by default and the server's own.

End to end is the whole command, cold: for img2dataset with its processes' imports, for ours with the start of Ray and the four stages
before the crawl. CPU is that of all processes the command started, read from /proc ten times a second; the server's is not counted. Both
have a fixed cost that many pictures make small, so each is also given by its own count: img2dataset's statistics, our commit records.

The decisions that it supports: our own engine as default, pictures decoded by libjpeg-turbo, areas by a kernel of our own.
"""

import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipeline import status
from tests.benchmarks.data.photographs import draw
from tests.certificates import write_certificate
from tests.conftest import wait_for_port
from tests.e2e import pipelines
from tests.ports import free_port

NGINX = Path("/usr/sbin/nginx")
STATIC_SERVER = """
import ssl, sys
from aiohttp import web
app = web.Application()
app.router.add_static("/", sys.argv[1])
context = None
if len(sys.argv) > 3:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[3:])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), print=None, ssl_context=context)
"""
DISTINCT = 200  # pictures drawn; each is served under many names


@contextmanager
def server(folder: Path, scheme: str) -> Iterator[str]:
    """Serves `folder`/web; yields where. The certificate of https is `folder`/own.pem."""
    port = free_port()
    pair = [str(folder / "own.pem"), str(folder / "key.pem")] if scheme == "https" else []
    if NGINX.exists():
        settings = folder / "nginx.conf"
        tls = f"ssl_certificate {pair[0]}; ssl_certificate_key {pair[1]};" if pair else ""
        settings.write_text(
            f"worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; daemon off;\n"
            "events { worker_connections 4096; }\n"
            + f"http {{ access_log off; sendfile on; keepalive_requests 100000; types {{ image/jpeg jpg; }} {tls}\n"
            f"server {{ listen 127.0.0.1:{port} {'ssl ' if pair else ''}backlog=4096; root {folder}/web; }} }}\n"
        )
        command = [str(NGINX), "-c", str(settings), "-p", str(folder)]
    else:
        command = [sys.executable, "-c", STATIC_SERVER, f"{folder}/web", str(port), *pair]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield f"{scheme}://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def trusted(folder: Path) -> dict[str, str]:
    """Environment in which Python trusts what it trusts by default and a new certificate of 127.0.0.1, `folder`/own.pem."""
    write_certificate("127.0.0.1", folder / "own.pem", folder / "key.pem")
    paths = ssl.get_default_verify_paths()
    default = Path(paths.cafile or paths.openssl_cafile)
    bundle = folder / "trusted.pem"
    bundle.write_bytes((default.read_bytes() if default.exists() else b"") + (folder / "own.pem").read_bytes())
    return {"SSL_CERT_FILE": str(bundle)}


class Cost(NamedTuple):
    """What a crawl of all pictures took."""

    seconds: float
    """Of the whole command."""
    cpu_seconds: float
    """Of all processes that it started."""
    own_seconds: float
    """From the first unit's start to the last one's end, by its own records."""


def timed(command: list[str], log: Path, env: Mapping[str, str]) -> tuple[float, float]:
    """Seconds and CPU seconds of a command and all that it starts."""
    began = time.perf_counter()
    launch = pipelines.start(command, log, env)
    used: dict[int, float] = {}

    def look() -> None:
        while launch.process.poll() is None:
            for pid in launch.members():
                used[pid] = max(used.get(pid, 0.0), cpu_seconds(pid))
            time.sleep(0.1)

    watching = threading.Thread(target=look)
    watching.start()
    code = launch.process.wait()
    seconds = time.perf_counter() - began
    watching.join()
    launch.members_end()
    if code:
        raise SystemExit(launch.text())
    return seconds, sum(used.values())


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (proc(5) stat, fields 14 and 15); 0 when it has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def img2dataset(urls: list[str], folder: Path, env: Mapping[str, str]) -> Cost:
    table, out, script = folder / "urls.txt", folder / "peer", folder / "peer.py"
    table.write_text("\n".join(urls))
    script.write_text(
        "import img2dataset\n"
        "if __name__ == '__main__':\n"
        f"    img2dataset.download(url_list={str(table)!r}, output_folder={str(out)!r}, input_format='txt', output_format='parquet',\n"
        "        processes_count=2, thread_count=64, image_size=256, resize_mode='keep_ratio', resize_only_if_bigger=True,\n"
        "        encode_quality=95, number_sample_per_shard=500, retries=0, enable_wandb=False)\n"
    )
    env = {**env, "NO_ALBUMENTATIONS_UPDATE": "1"}
    seconds, cpu = timed([sys.executable, "-W", "ignore", str(script)], folder / "peer.log", env)
    stats = [json.loads(path.read_text()) for path in out.glob("*_stats.json")]
    assert sum(each["successes"] for each in stats) == len(urls), stats
    shutil.rmtree(out)
    return Cost(seconds, cpu, max(each["end_time"] for each in stats) - min(each["start_time"] for each in stats))


def ours(urls: list[str], hashes: bool, folder: Path, env: Mapping[str, str]) -> Cost:
    out, config = folder / "ours", folder / "config.toml"
    (folder / "urls.csv").write_text(
        "url,caption\n" + "".join(f"{url},a picture of scene {n}\n" for n, url in enumerate(urls))
    )
    (folder / "queries.txt").write_text("picture\n")
    config.write_text(
        f"""
[run]
out = "{out}"
[engine]
workers = 2
[sources]
paths = ["{folder}/urls.csv"]
[filter]
queries = "{folder}/queries.txt"
[precap]
per_query = 1000000
[crawl]
units = 8
host_split = 8
per_host = 512
perceptual_hashes = {str(hashes).lower()}
allow_addresses = ["127.0.0.0/8"]
[dedup]
by = "caption"
"""
    )
    command = pipelines.command(config, str(out), name="crawl")
    seconds, cpu = timed(command, folder / "ours.log", env)
    [crawl] = [stage for stage in status.stages(str(out)) if stage.name == "crawl"]
    assert sum(record.rows_out for record in crawl.records) == len(urls), [record.rejected for record in crawl.records]
    ends = [record.started + record.seconds for record in crawl.records]
    shutil.rmtree(out)
    return Cost(seconds, cpu, max(ends) - min(record.started for record in crawl.records))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as name, pipelines.ray_folder() as ray:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "web").mkdir()
        for number in range(count):
            path = folder / "web" / f"{number}.jpg"
            if number < DISTINCT:
                path.write_bytes(draw(number))
            else:
                os.link(folder / "web" / f"{number % DISTINCT}.jpg", path)
        mean = sum((folder / "web" / f"{number}.jpg").stat().st_size for number in range(count)) / count
        env = {**pipelines.environment(ray), **trusted(folder)}
        by = "nginx" if NGINX.exists() else "aiohttp"
        print(f"{count:,} JPEGs of 1024 x 768, mean {mean / 1000:.0f} kB, from {by}; ratios to img2dataset")
        print(
            f"{'':27}{'end to end, 1/s':>17}{'own count, 1/s':>17}{'CPU ms each':>14}{'end to end':>13}{'own':>7}{'CPU':>7}"
        )
        for scheme in ("http", "https"):
            with server(folder, scheme) as base:
                urls = [f"{base}/{number}.jpg" for number in range(count)]
                peer = img2dataset(urls, folder, env)
                told(f"{scheme:7}img2dataset", count, peer, peer)
                for hashes in (False, True):
                    name = f"{scheme:7}ours, hashes {'on' if hashes else 'off'}"
                    told(name, count, ours(urls, hashes, folder, env), peer)


def told(name: str, count: int, cost: Cost, peer: Cost) -> None:
    ratios = (peer.seconds / cost.seconds, peer.own_seconds / cost.own_seconds, cost.cpu_seconds / peer.cpu_seconds)
    print(
        f"{name:27}{count / cost.seconds:>17.0f}{count / cost.own_seconds:>17.0f}{cost.cpu_seconds / count * 1e3:>14.2f}"
        f"{ratios[0]:>12.2f}x{ratios[1]:>6.2f}x{ratios[2]:>6.2f}x"
    )


if __name__ == "__main__":
    main()
