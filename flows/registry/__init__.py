"""MLflow: runs, versions of the model, the gates that they pass, and the champion."""
