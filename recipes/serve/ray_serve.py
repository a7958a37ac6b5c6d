"""Replicas of the server on a Ray cluster: `serve run ray_serve:build config=serve.yaml replicas=2` in this folder.

Each replica loads the models of serve.yaml; Ray Serve spreads the requests over them, and replaces one that fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import serve


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application for Ray Serve.

    Args:
        arguments: `config`: the file, at the same path on each machine; `replicas`: 2 by default; `cpus` and `gpus`:
            what each replica needs, 1 and 0 by default; `requests`: most that a replica works on at once, 64 by
            default, which should be the `max_queue` of the file.
    """
    config = str(Path(arguments["config"]).resolve())

    def app() -> Any:  # called in each replica, since a loaded model cannot be sent there
        from onmt_llm.cli.serve import open_app

        return open_app(config)

    resources = {"num_cpus": float(arguments.get("cpus", 1)), "num_gpus": float(arguments.get("gpus", 0))}
    deployment = serve.deployment(
        serve.ingress(app)(),
        name="onmt_llm",
        num_replicas=int(arguments.get("replicas", 2)),
        max_ongoing_requests=int(arguments.get("requests", 64)),
        ray_actor_options=resources,
    )
    return deployment.bind()
