"""Orchestration: the one place that knows Prefect, MLflow and DVC."""
