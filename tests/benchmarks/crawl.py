"""Crawling: img2dataset's own `download` beside our engine, on the same server, the same pictures, and both cores.

    python -m tests.benchmarks.crawl [PICTURES]

4,000 JPEGs of 1024 x 768, drawn here, are served by nginx on the loopback (`apt-get install nginx-light`; without it by an aiohttp
server in a process of its own, which is slower and takes more of the cores). img2dataset writes Parquet with 2 processes of 64 threads;
ours runs as 2 units through Ray, as the pipeline runs it, once without perceptual hashes and once with. Same output: keep_ratio 256,
JPEG 95. CPU is that of all processes that fetch and decode; the server's is not counted. For img2dataset that is its process tree with
its start-up (it spawns and imports anew for every download); for ours the Ray workers, warm, as they are from the second unit of a real
crawl on. So img2dataset's speed is given twice: end to end, and by its own count, without start-up.

The decisions that it supports: our own engine as default, pictures decoded by libjpeg-turbo, areas by a kernel of our own.
"""

import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from pipeline.contracts.schema import MATCHED_SCHEMA, uid
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.stage import crawl
from tests.conftest import free_port, wait_for

NGINX = Path("/usr/sbin/nginx")
STATIC_SERVER = """
import sys
from aiohttp import web
app = web.Application()
app.router.add_static("/", sys.argv[1])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), print=None)
"""
DISTINCT = 200  # pictures drawn; each is served under many names


def draw(seed: int) -> bytes:
    """A scene with edges, gradients and grain: about as many bytes as a photograph of that size."""
    dice = np.random.default_rng(seed)
    y, x = np.mgrid[0:768, 0:1024].astype(np.float32)
    pixels = np.stack(
        [128 + 90 * np.sin(x / dice.uniform(60, 300) + y / dice.uniform(60, 300) + c) for c in range(3)], axis=2
    )
    for _ in range(60):
        cx, cy, radius = dice.uniform(0, 1024), dice.uniform(0, 768), dice.uniform(10, 120)
        pixels[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = dice.uniform(0, 255, 3)
    grain = dice.normal(0, 5, (768, 1024, 1))
    file = io.BytesIO()
    PIL.Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


@contextmanager
def server(folder: Path) -> Iterator[int]:
    port = free_port()
    if NGINX.exists():
        settings = folder / "nginx.conf"
        settings.write_text(
            f"worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; daemon off;\n"
            "events { worker_connections 4096; }\n"
            "http { access_log off; sendfile on; keepalive_requests 100000; types { image/jpeg jpg; }\n"
            f"server {{ listen 127.0.0.1:{port} backlog=4096; root {folder}/web; }} }}\n"
        )
        command = [str(NGINX), "-c", str(settings), "-p", str(folder)]
    else:
        command = [sys.executable, "-c", STATIC_SERVER, f"{folder}/web", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/0.jpg")
        yield port
    finally:
        process.terminate()
        process.wait()


def img2dataset(urls: Path, out: Path) -> tuple[float, float, float]:
    """Seconds end to end, CPU seconds, and pictures a second by its own count."""
    program = (
        "import img2dataset\n"
        "if __name__ == '__main__':\n"
        f"    img2dataset.download(url_list={str(urls)!r}, output_folder={str(out)!r}, input_format='txt', output_format='parquet',\n"
        "        processes_count=2, thread_count=64, image_size=256, resize_mode='keep_ratio', resize_only_if_bigger=True,\n"
        "        encode_quality=95, number_sample_per_shard=1000, retries=0, enable_wandb=False)\n"
    )
    script = out.parent / "peer.py"
    script.write_text(program)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        check=True,
        env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    stats = [json.loads(path.read_text()) for path in out.glob("*_stats.json")]
    assert sum(each["successes"] for each in stats) == len(urls.read_text().split()), stats
    span = max(each["end_time"] for each in stats) - min(each["start_time"] for each in stats)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, sum(each["count"] for each in stats) / span


@ray.remote(num_cpus=1)
class Worker:
    """A worker that crawls one unit at a time and writes it, as a unit of the pipeline is written."""

    def unit(self, urls: list[str], config: CrawlConfig, path: str) -> tuple[int, float]:
        before = resource.getrusage(resource.RUSAGE_SELF)
        table = pa.Table.from_pylist(
            [
                {"uid": uid(url, "x"), "url": url, "caption_raw": "x", "caption": "x", "source": "", "query_ids": [0]}
                for url in urls
            ],
            schema=MATCHED_SCHEMA,
        )
        rows, rejected = crawl(table, config)
        pq.write_table(rows, path)
        assert rejected.num_rows == 0, rejected.slice(0, 3).to_pylist()
        after = resource.getrusage(resource.RUSAGE_SELF)
        return rows.num_rows, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ours(urls: list[str], config: CrawlConfig, folder: Path) -> tuple[float, float]:
    """Seconds and CPU seconds of two units on two warm workers."""
    workers = [Worker.remote() for _ in range(2)]  # type: ignore[attr-defined]
    ray.get([worker.unit.remote(urls[:8], config, f"{folder}/warm{n}.parquet") for n, worker in enumerate(workers)])
    began = time.perf_counter()
    done = ray.get(
        [worker.unit.remote(urls[n::2], config, f"{folder}/{n}.parquet") for n, worker in enumerate(workers)]
    )
    seconds = time.perf_counter() - began
    assert sum(rows for rows, _ in done) == len(urls)
    for worker in workers:
        ray.kill(worker)
    return seconds, sum(cpu for _, cpu in done)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "web").mkdir()
        for number in range(count):
            path = folder / "web" / f"{number}.jpg"
            if number < DISTINCT:
                path.write_bytes(draw(number))
            else:
                os.link(folder / "web" / f"{number % DISTINCT}.jpg", path)
        mean = sum((folder / "web" / f"{number}.jpg").stat().st_size for number in range(DISTINCT)) / DISTINCT
        with server(folder) as port:
            urls = [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(count)]
            (folder / "urls.txt").write_text("\n".join(urls))
            print(
                f"{count:,} JPEGs of 1024 x 768, mean {mean / 1000:.0f} kB, from {'nginx' if NGINX.exists() else 'aiohttp'}"
            )
            print(f"{'':36}{'pictures/s':>12}{'CPU ms each':>13}{'speed':>8}{'CPU':>8}")
            seconds, cpu, steady = img2dataset(folder / "urls.txt", folder / "peer")
            print(f"{'img2dataset, end to end':36}{count / seconds:>12.0f}{cpu / count * 1e3:>13.2f}")
            print(f"{'img2dataset, by its own count':36}{steady:>12.0f}")
            shutil.rmtree(folder / "peer")
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
            for hashes in (False, True):
                config = CrawlConfig(
                    allow_addresses=("127.0.0.0/8",),
                    perceptual_hashes=hashes,
                    concurrency=64,
                    per_host=64,
                    host_split=1,
                )
                taken, used = ours(urls, config, folder)
                name = f"ours, hashes {'on' if hashes else 'off'}"
                print(
                    f"{name:36}{count / taken:>12.0f}{used / count * 1e3:>13.2f}{seconds / taken:>7.2f}x{used / cpu:>7.2f}x"
                )
                print(f"{'  against its own count':36}{'':>25}{count / taken / steady:>7.2f}x")


if __name__ == "__main__":
    main()
