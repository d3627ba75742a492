"""The quick answer where nothing has changed: no flow run, and no Prefect server for it."""

from __future__ import annotations

import time

from components.io import read_json
from flows.pipeline.prepared import Prepared
from flows.pipeline.summary import Summary


def summary_if_up_to_date(project: Prepared) -> Summary | None:
    """Return how things stand if every stage is up to date, published, registered and judged; else None."""
    begun, root = time.monotonic(), project.root
    if project.plan.to_run or not (root / "mlruns" / "mlflow.db").is_file() or not (root / "dvc.lock").is_file():
        return None
    from flows.registry.mlflow_store import connect
    from flows.registry.promote import standing
    from flows.registry.publish import find_publication
    from flows.registry.register import find_version

    client = connect(root)
    publication = find_publication(client, root)
    version = find_version(client, publication) if publication else None
    decision = standing(client, project.config.gates, version) if version else None
    if publication is None or decision is None:
        return None
    metrics = read_json(root / "reports" / "metrics.json")
    return Summary({}, time.monotonic() - begun, run_id=publication.run_id, decision=decision, metrics=metrics)
