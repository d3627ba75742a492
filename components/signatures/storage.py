"""A signature's files: written whole or not at all, in as few bytes as retrieval can do with (docs/method.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from components.arrays import Arrays
from components.io import atomic_folder, read_arrays, read_json, write_arrays, write_json
from components.signatures.classifier import Classifier, from_float16, in_float16
from components.signatures.conformal import Calibration
from components.signatures.mixture import Mixture
from components.signatures.scatter import CompactScatter, dense, from_int8, in_int8
from components.signatures.signature import Signature
from components.signatures.statistics import Statistics
from components.signatures.support import Support


def write_signature(folder: Path, signature: Signature, scatter_rank: int) -> None:
    """Store a signature under `folder`/<task>: its scatter as a factor model of `scatter_rank` directions."""
    mixture, statistics, classifier = signature.mixture, signature.statistics, signature.classifier
    scatter = CompactScatter.of(dense(statistics.scatter), scatter_rank)
    means: Arrays = {"counts": statistics.counts, "means": statistics.means.astype(np.float16)}
    with atomic_folder(folder / signature.task) as temporary:
        write_arrays(temporary / "shared.safetensors", means | scatter.to_arrays())
        write_arrays(temporary / "mixture.safetensors", _mixture_arrays(mixture))
        # In the space of the embeddings, for people to look at.
        centroids: Arrays = {"centroids": mixture.centroids.astype(np.float16), "weights": mixture.weights}
        write_arrays(temporary / "centroids.safetensors", centroids)
        write_support(temporary / "support.safetensors", signature.support)
        if signature.trunk_support:
            write_support(temporary / "trunk_support.safetensors", signature.trunk_support)
        write_classifier(temporary, classifier)
        facts = {"task": signature.task, "classes": signature.classes, "centroids": len(mixture.weights)}
        write_json(temporary / "signature.json", facts)


def write_support(path: Path, support: Support) -> None:
    """Store a support, whose mixture is `rounded`."""
    write_arrays(path, _mixture_arrays(support.mixture) | {"held_out_scores": support.calibration.scores})


def write_classifier(folder: Path, classifier: Classifier) -> None:
    """Store a classifier, `rounded`, in `folder`."""
    coef, unit = in_float16(classifier.coef)
    arrays: Arrays = {"coef": coef, "coef_unit": np.array([unit]), "intercept": classifier.intercept}
    write_arrays(folder / "classifier.safetensors", arrays | {"temperature": np.array([classifier.temperature])})


def read_signature(folder: Path, task: str) -> Signature:
    """The signature under `folder`/<task>.

    Raises:
        IntaglioError: a file is missing or damaged.
    """
    facts = read_json(folder / task / "signature.json")
    shared = read_arrays(folder / task / "shared.safetensors")
    scatter = CompactScatter.from_arrays(shared)
    statistics = Statistics(shared["counts"], shared["means"].astype(np.float64), scatter)
    return Signature(
        task,
        tuple(facts["classes"]),
        statistics,
        read_mixture(folder / task),
        read_support(folder / task / "support.safetensors"),
        read_support(trunk) if (trunk := folder / task / "trunk_support.safetensors").exists() else None,
        read_classifier(folder / task),
    )


def read_mixture(folder: Path) -> Mixture:
    """The mixture of a signature's folder."""
    return _mixture(read_arrays(folder / "mixture.safetensors"))


def read_support(path: Path) -> Support:
    """The inverse of `write_support`.

    Raises:
        IntaglioError: the file is missing or damaged.
    """
    arrays = read_arrays(path)
    return Support(_mixture(arrays), Calibration(arrays["held_out_scores"]))


def _mixture_arrays(mixture: Mixture) -> Arrays:
    """The axes, nearly all of a mixture, in int8; `Mixture.rounded` has no more digits either."""
    arrays = {
        "weights": mixture.weights,
        "means": mixture.means,
        "variances": mixture.variances,
        "center": mixture.center,
        "noise": np.array([mixture.noise]),
    }
    single: Arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    axes, step = in_int8(mixture.axes)
    return single | {"axes": axes, "axes_step": step}


def _mixture(arrays: Arrays) -> Mixture:
    weights, means, variances, center, noise = (
        arrays[name].astype(np.float64) for name in ("weights", "means", "variances", "center", "noise")
    )
    axes = arrays["axes"]
    # Models that were registered before axes were int8 have them in float16, as they are.
    axes = from_int8(axes, arrays["axes_step"]) if "axes_step" in arrays else axes.astype(np.float64)
    return Mixture(weights, means, variances, center, axes, float(noise[0]))


def read_classifier(folder: Path) -> Classifier:
    """The classifier of a signature's folder."""
    arrays = read_arrays(folder / "classifier.safetensors")
    coef = arrays["coef"]
    # Models that were registered before have them in float32, as they are.
    coef = from_float16(coef, float(arrays["coef_unit"][0])) if "coef_unit" in arrays else coef.astype(np.float64)
    return Classifier(coef, arrays["intercept"], float(arrays["temperature"][0]))
