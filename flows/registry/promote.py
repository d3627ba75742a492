"""Champion and challenger: gates, promotion and rollback.

The alias `champion` moves in one statement of the database, after everything that explains the move was written. So a
process that is killed anywhere leaves either the old champion or the new one, never none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from components.config import Gates
from components.errors import IntaglioError
from components.io import read_json, sha256_bytes
from flows.registry.gates import GateRow, judge, passed
from flows.registry.mlflow_store import CHALLENGER, CHAMPION, aliases, tag_version, tags_of, version_of
from flows.settings import MODEL

Verdict = Literal["promoted", "blocked", "champion", "kept"]


@dataclass(frozen=True)
class Decision:
    """What became of a version.

    Attributes:
        version: its number.
        verdict: `promoted`: it is the new champion. `blocked`: a gate failed. `champion`: it was champion already.
            `kept`: it was champion once, and the version that replaced it stays.
        rows: the gates' verdicts.
        champion: the champion's number afterwards; None while there is none.
    """

    version: str
    verdict: Verdict
    rows: tuple[GateRow, ...]
    champion: str | None


def settle(client: MlflowClient, gates: Gates, number: str) -> Decision:
    """Decide about a version, once, after it was registered.

    Args:
        client: of the project's registry.
        gates: the thresholds.
        number: the version's number.
    """
    return standing(client, gates, number) or promote(client, gates, number)


def standing(client: MlflowClient, gates: Gates, number: str) -> Decision | None:
    """Return what was decided about a version before; None if it is still to be judged.

    The same version against the same champion and thresholds is not judged again, and a version that a person rolled
    back, or that a later one replaced, does not come back by itself.

    Args:
        client: of the project's registry.
        gates: the thresholds.
        number: the version's number.
    """
    tags, known = tags_of(version_of(client, number)), aliases(client)
    rows, current = _recorded_rows(tags), known.get(CHAMPION)
    if current == number and ("promoted_at" not in tags or known.get(CHALLENGER) == number):
        return None  # killed in the middle of its promotion
    if current == number:
        return Decision(number, "champion", rows, current)
    if "rolled_back" in tags or "promoted_at" in tags:
        return Decision(number, "kept", rows, current)
    if tags.get("gates") == "blocked" and tags.get("gates_sha256") == _basis_sha256(gates, current):
        return Decision(number, "blocked", rows, current)
    return None


def promote(client: MlflowClient, gates: Gates, number: str | None = None, force: str | None = None) -> Decision:
    """Judge a version by the gates and make it champion if it passes, or if forced.

    Args:
        client: of the project's registry.
        gates: the thresholds.
        number: the version's number; None: the challenger's.
        force: the reason for overruling a gate; it is kept in the version's tag `forced`.

    Raises:
        IntaglioError: there is no such version, or no challenger.
    """
    known = aliases(client)
    number = number or known.get(CHALLENGER)
    if number is None:
        raise IntaglioError(
            f"model {MODEL}: there is no challenger; run `intaglio run`, or name one with `--version N`"
        )
    version, current = version_of(client, number), known.get(CHAMPION)
    if current == number:
        _close_promotion(client, number, tags_of(version), known)
        return Decision(number, "champion", _recorded_rows(tags_of(version)), current)
    champion = None if current is None else _metrics_of(client, current)
    rows = judge(gates, _metrics_of(client, number), champion)
    _record(client, number, str(version.run_id), rows, _basis_sha256(gates, current))
    if not passed(rows) and force is None:
        return Decision(number, "blocked", rows, current)
    if force is not None:
        tag_version(client, number, {"forced": force})
    tag_version(client, number, {"previous_champion": current or ""})
    client.set_registered_model_alias(MODEL, CHAMPION, number)
    _close_promotion(client, number, tags_of(version), known)
    return Decision(number, "promoted", rows, number)


def _close_promotion(client: MlflowClient, number: str, tags: Mapping[str, str], known: Mapping[str, str]) -> None:
    """Write what follows the champion's alias; repeating it changes nothing but the time."""
    tag_version(client, number, {"promoted_at": _now()})
    if "rolled_back" in tags:
        client.delete_model_version_tag(MODEL, number, "rolled_back")
    if known.get(CHALLENGER) == number:
        client.delete_registered_model_alias(MODEL, CHALLENGER)


def rollback(client: MlflowClient) -> tuple[str, str]:
    """Make the previous champion champion again.

    Returns:
        The version that was champion, and the one that is now.

    Raises:
        IntaglioError: there is no champion, or none before it.
    """
    current = aliases(client).get(CHAMPION)
    if current is None:
        raise IntaglioError(f"model {MODEL}: there is no champion to roll back; `intaglio run` makes one")
    previous = tags_of(version_of(client, current)).get("previous_champion")
    if not previous:
        raise IntaglioError(f"model {MODEL}: version {current} is the first champion; there is nothing to roll back to")
    version_of(client, previous)
    tag_version(client, current, {"rolled_back": _now()})
    client.set_registered_model_alias(MODEL, CHAMPION, previous)
    return current, previous


def _metrics_of(client: MlflowClient, number: str) -> Mapping[str, Any]:
    """Return a version's metrics.json; empty, so that every gate blocks, where its run has none."""
    run_id = str(version_of(client, number).run_id)
    try:
        metrics = read_json(Path(client.download_artifacts(run_id, "metrics.json")))
    except (MlflowException, OSError, IntaglioError):
        return {}
    return metrics if isinstance(metrics, Mapping) else {}


def _record(client: MlflowClient, number: str, run_id: str, rows: tuple[GateRow, ...], basis: str) -> None:
    table = [asdict(row) for row in rows]
    client.log_dict(run_id, {"version": number, "gates": table}, f"gates/version-{number}.json")
    for row in rows:
        tag_version(client, number, {f"gate.{row.name}": f"{'passed' if row.passed else 'BLOCKED'}: {row.sentence}"})
    verdict = "passed" if passed(rows) else "blocked"
    tag_version(client, number, {"gate_rows": json.dumps(table), "gates_sha256": basis, "gates": verdict})


def _recorded_rows(tags: Mapping[str, str]) -> tuple[GateRow, ...]:
    return tuple(GateRow(**row) for row in json.loads(tags.get("gate_rows", "[]")))


def _basis_sha256(gates: Gates, champion: str | None) -> str:
    """Hash what a verdict depends on beside the version: the thresholds, and the champion compared with."""
    return sha256_bytes(json.dumps([gates.model_dump(), champion], sort_keys=True).encode())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
