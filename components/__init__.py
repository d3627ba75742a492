"""The science and the data of Intaglio: pure, without Prefect, MLflow or DVC."""
