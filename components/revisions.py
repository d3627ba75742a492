"""The revision of every stage: an integer that is raised when the stage's result changes for the same input.

A stage of a task carries no revision in its command: what a task left stays as it is when the software changes, and
only a person has it made again (`intaglio run --retrain NAME`). The stages after the tasks' own carry theirs in
dvc.yaml, so that an upgrade runs those again: they read what tasks left and cost seconds.
tests/components/records/test_revisions.py holds a digest of each stage's output on a small input for its revision.
"""

REVISIONS = {
    "backbone": 1,
    "fetch": 1,
    "ingest": 1,
    "validate": 1,
    "finetune": 1,
    "signature": 2,
    "record": 1,
    "update": 2,
    "evaluate": 2,
    "report": 2,
    "bundle": 2,
}
