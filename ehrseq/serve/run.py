"""Running the service."""

from __future__ import annotations

import gc
from pathlib import Path

import torch
import uvicorn

from ehrseq.errors import UserError
from ehrseq.estimator import ProgressionModel, load_model
from ehrseq.serve.app import make_app
from ehrseq.serve.pool import Process, start_all
from ehrseq.serve.scoring import warm
from ehrseq.serve.settings import Settings

CONNECTIONS = 512  # at once


def serve(model: ProgressionModel | str | Path, settings: Settings | None = None) -> None:
    """Answer requests with a model, or the model of a folder, until interrupted.

    The model of a folder is scored with in as many processes as `settings` has workers, another one here.

    Raises UserError, before anything is opened, for a model that cannot be read or forecasts nothing; and where the
    address is taken.
    """
    settings = settings or Settings()
    torch.set_num_threads(settings.threads)
    card, workers = None, list[Process]()
    if isinstance(model, str | Path):
        folder, model = Path(model), load_model(model)
        card = (folder / "model_card.md").read_text(encoding="utf-8")
        hashed, seconds = model.folder_hash_, settings.answer_seconds
        workers = [Process(folder, hashed, settings.threads, seconds) for _ in range(settings.workers)]
    try:
        # before anything is opened: a fault in the model is none of the address
        if workers:
            start_all(workers)
        else:
            warm(model)
        # what stays until the end, libraries and model, is not gone over again and again while requests wait
        gc.collect()
        gc.freeze()
        app = make_app(model, settings, card, workers)
        config = uvicorn.Config(
            app, host=settings.host, port=settings.port, log_level="critical", access_log=False, server_header=False,
            ws="none", timeout_keep_alive=5, timeout_graceful_shutdown=10, backlog=256, proxy_headers=False,
            http="h11", h11_max_incomplete_event_size=1 << 15, limit_concurrency=CONNECTIONS,
        )  # fmt: skip
        server = uvicorn.Server(config)
        server.run()
        if not server.started:
            raise UserError("workers that begin", "one that ended", "start the service again, with fewer --workers")
    except SystemExit:
        raise UserError("a free address and port", "one that cannot be used", "choose another --port") from None
    finally:
        gc.unfreeze()
        for worker in workers:
            worker.close()
