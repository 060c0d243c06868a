"""vLLM's metrics without vLLM: the same names and labels, with numbers that grow.

That the names are vLLM's own is tested where a real vLLM is installed (test_student_metrics.py).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from ops.known_metrics import FRONTEND, VLLM
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    make_wsgi_app,
)

STEP_S = 0.2


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def vllm_exporter(*, negotiates: bool) -> Iterator[str]:
    """Its address, HOST:PORT. One that negotiates answers as vLLM does: to Prometheus 2 with
    underscores in place of the colons. The other always has the names as they are."""
    registry = CollectorRegistry()
    children = []
    for name, (kind, labels) in VLLM.items():
        common = ("model_name",) if name in FRONTEND else ("model_name", "engine")
        make = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}[kind]
        metric = make(name, name, (*common, *labels), registry=registry)
        values = {"model_name": "student-base", "engine": "0", "reason": "capacity"}
        values |= {"finished_reason": "stop"}
        children.append(metric.labels(*(values[label] for label in (*common, *labels))))

    def plain(environ: Any, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain; version=0.0.4")])
        return [generate_latest(registry)]

    stop = threading.Event()

    def work() -> None:
        while not stop.wait(STEP_S):
            for child in children:
                if isinstance(child, Histogram):
                    child.observe(0.05)
                else:
                    child.inc()

    app = make_wsgi_app(registry) if negotiates else plain
    with make_server("127.0.0.1", 0, app, handler_class=Quiet) as server:
        threads = [threading.Thread(target=run) for run in (work, server.serve_forever)]
        for thread in threads:
            thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            stop.set()
            server.shutdown()
            for thread in threads:
                thread.join()
