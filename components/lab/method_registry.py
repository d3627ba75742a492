"""All methods by name, with the grid that each is tuned over on validation. Add yours here (docs/laboratory.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from components.errors import IntaglioError
from components.lab.method import Frozen, Method
from components.lab.module_store import ModuleStore, NoModules, TaskModules
from components.lab.retrieval_signatures import (
    Centroids,
    Density,
    Entropy,
    PooledClasses,
    PooledComponents,
    RetrievalSignature,
    TwoStage,
    last_part,
    trunk_part,
)
from components.lab.retrieve_then_classify import RetrieveThenClassify
from components.lab.rivals import Ease, FirstLora, Joint, OneLora
from components.lab.single_classifier import CosineMeans, Flat, RandomRidge, Scorer, StreamingLda
from components.lab.task_sequence import ArrivingTask
from components.signatures.statistics import Statistics

Settings = Mapping[str, Any]  # one point of a method's grid


Make = Callable[[ModuleStore, int, Settings], Method]  # from the store of modules, a seed and a point of the grid
MakeSignature = Callable[[ModuleStore, int, Settings], RetrievalSignature]


@dataclass(frozen=True)
class MethodEntry:
    """A method of the laboratory.

    Attributes:
        what: a line about it, for tables.
        make: makes it.
        grid: the settings over which it is tuned.
        adapted: whether it trains modules, which costs minutes.
        final_only: whether it can be measured after the last task alone.
    """

    what: str
    make: Make
    grid: tuple[Settings, ...] = ({},)
    adapted: bool = False
    final_only: bool = False


def method_entry(name: str) -> MethodEntry:
    """Return a method by its name.

    Raises:
        IntaglioError: there is none of this name.
    """
    if name not in METHODS:
        raise IntaglioError(f"method {name!r}: unknown; known: {', '.join(METHODS)}")
    return METHODS[name]


def _flat(what: str, scorer: Callable[[int, Settings], Scorer], grid: tuple[Settings, ...] = ({},)) -> MethodEntry:
    """Describe one classifier over all classes, on the frozen backbone."""
    return MethodEntry(what, lambda store, seed, point: Flat(scorer(seed, point), Frozen()), grid)


def _first_lora(what: str, scorer: Callable[[int, Settings], Scorer], grid: tuple[Settings, ...]) -> MethodEntry:
    """Describe one classifier over all classes, on the frozen backbone beside a LoRA of the first task."""
    return MethodEntry(
        what, lambda store, seed, point: Flat(scorer(seed, point), FirstLora(store, seed)), grid, adapted=True
    )


def _frozen(what: str, signature: MakeSignature, grid: tuple[Settings, ...] = ({},)) -> MethodEntry:
    """Describe a signature on the frozen backbone, and a classifier for each task."""

    def make(store: ModuleStore, seed: int, point: Settings) -> Method:
        return RetrieveThenClassify(signature(store, seed, point), NoModules(store))

    return MethodEntry(what, make, grid)


def _adapted(
    what: str, signature: MakeSignature, *, composed: bool, ensemble: bool = False, pooled_trunk: bool = False
) -> MethodEntry:
    """Describe a signature, and a module for each task.

    Args:
        what: a line about it.
        signature: makes what retrieves the task.
        composed: whether a module may reuse the ones before it.
        ensemble: whether the head and the task's own trunk discriminants name the class too.
        pooled_trunk: whether the trunk's discriminants with the pooled covariance name the class too.
    """

    def make(store: ModuleStore, seed: int, point: Settings) -> Method:
        found = signature(store, seed, point)
        trunk = _trunk_of(found) if pooled_trunk and isinstance(found, PooledClasses) else None
        return RetrieveThenClassify(found, TaskModules(store, seed, composed, ensemble), trunk)

    return MethodEntry(what, make, adapted=True)


def _base(store: ModuleStore, seed: int, point: Settings) -> RetrievalSignature:
    """Retrieve in the frozen space, as with `embedding.shared: base`."""
    return PooledClasses(compact=store.compact_statistics)


def _shared(store: ModuleStore, seed: int, point: Settings) -> RetrievalSignature:
    """Retrieve in the frozen space and, beside it, under the first task's module, as by default."""
    first = FirstLora(store, seed)

    def compact(task: ArrivingTask) -> Statistics:
        first.learn(task)
        return store.compact_statistics(task, first.name)

    return PooledClasses(first.embed, compact)


def _trunk_of(pooled: PooledClasses) -> PooledClasses:
    """Restrict a signature to the trunk's part of its statistics."""

    def compact(task: ArrivingTask) -> Statistics:
        return pooled.statistics(task).first(task.train.images.embedded.trunk_width)

    return PooledClasses(trunk_part, compact)


def _density(store: ModuleStore, seed: int, point: Settings) -> Density:
    return Density(store.config.signature, seed, adapted=False)


_SHRINKAGE: tuple[Settings, ...] = ({"shrinkage": None}, *({"shrinkage": own} for own in (1e-4, 1e-3, 1e-2, 0.1, 0.3)))
_RIDGE = tuple({"width": width, "ridge": ridge} for width in (2000, 4000) for ridge in (1e-4, 1e-3, 1e-2, 1e-1))
_CLUSTERS: tuple[Settings, ...] = ({"count": 5}, {"count": 20})

METHODS: dict[str, MethodEntry] = {
    "frozen_ncm": _flat("frozen backbone, nearest class mean by cosine (SimpleCIL)", lambda seed, point: CosineMeans()),
    "frozen_slda": _flat(
        "frozen backbone, streaming LDA over all classes",
        lambda seed, point: StreamingLda(point["shrinkage"]),
        _SHRINKAGE,
    ),
    "ranpac": _flat(
        "frozen backbone, random projection and ridge regression (RanPAC)",
        lambda seed, point: RandomRidge(point["width"], point["ridge"], seed),
        _RIDGE,
    ),
    "first_slda": _first_lora(
        "frozen beside a LoRA of the first task, streaming LDA (as APER)",
        lambda seed, point: StreamingLda(point["shrinkage"]),
        _SHRINKAGE,
    ),
    "first_ranpac": _first_lora(
        "frozen beside a LoRA of the first task, then as ranpac (RanPAC with a first step)",
        lambda seed, point: RandomRidge(point["width"], point["ridge"], seed),
        _RIDGE,
    ),
    "sequential_lora": MethodEntry(
        "one LoRA trained on every task in turn, streaming LDA",
        lambda store, seed, point: Flat(StreamingLda(), OneLora(store, seed)),
        adapted=True,
    ),
    "joint_lora": MethodEntry(
        "one LoRA for all tasks at once, LDA over all classes (needs all data)",
        lambda store, seed, point: Joint(store, StreamingLda, seed),
        adapted=True,
        final_only=True,
    ),
    "s_prompts": _adapted(
        "k-means on h_0, a LoRA per task (S-Prompts)",
        lambda store, seed, point: Centroids(5, seed),
        composed=False,
    ),
    "tuna": _adapted(
        "a LoRA per task, the one of lowest entropy answers (TUNA)",
        lambda store, seed, point: Entropy(),
        composed=False,
    ),
    "ease": MethodEntry(
        "a LoRA per task, class means in all of their spaces (EASE)",
        lambda store, seed, point: Ease(TaskModules(store, seed, composed=False), point["others"]),
        ({"others": 0.1}, {"others": 1.0}),
        adapted=True,
    ),
    "paper": _adapted(
        "composed modules, DP-GMM on h_k (the paper's rule)",
        lambda store, seed, point: Density(store.config.signature, seed, adapted=True),
        composed=True,
    ),
    "intaglio": _adapted(
        "composed modules, pooled covariance on h_0 (ours, with the default settings)",
        _shared,
        composed=True,
        ensemble=True,
        pooled_trunk=True,
    ),
    "intaglio_own": _adapted(
        "as intaglio, no module reuses another", _shared, composed=False, ensemble=True, pooled_trunk=True
    ),
    "intaglio_base": _adapted(
        "as intaglio, retrieval in the frozen space alone (embedding.shared: base)",
        _base,
        composed=True,
        ensemble=True,
        pooled_trunk=True,
    ),
    "intaglio_two": _adapted(
        "as intaglio_base, without head and own trunk discriminants", _base, composed=True, pooled_trunk=True
    ),
    "intaglio_alone": _adapted(
        "as intaglio_base, discriminants on the adapted part alone name the class", _base, composed=True
    ),
    "intaglio_frozen": MethodEntry(
        "as intaglio_base without modules, with all of the scatter",
        lambda store, seed, point: RetrieveThenClassify(PooledClasses(), NoModules(store), PooledClasses(trunk_part)),
    ),
    "signature_mean": _frozen("signature: the task's mean", lambda store, seed, point: Centroids(1, seed)),
    "signature_kmeans": _frozen(
        "signature: k-means centroids", lambda store, seed, point: Centroids(point["count"], seed), _CLUSTERS
    ),
    "signature_gaussian": _frozen(
        "signature: one Gaussian",
        lambda store, seed, point: Density(
            store.config.signature.model_copy(update={"components": 1}), seed, adapted=False
        ),
    ),
    "signature_dpgmm": _frozen("signature: DP-GMM on h_0", _density),
    "signature_dpgmm_pooled": _frozen(
        "signature: DP-GMM means on h_0, pooled covariance",
        lambda store, seed, point: PooledComponents(store.config.signature, seed),
    ),
    "signature_trunk": _frozen(
        "signature: pooled covariance on the trunk's output", lambda store, seed, point: PooledClasses(trunk_part)
    ),
    "signature_last": _frozen(
        "signature: pooled covariance on the last block's output", lambda store, seed, point: PooledClasses(last_part)
    ),
    "signature_two_stage": _frozen(
        "signature: pooled covariance keeps two tasks, DP-GMM on h_0 decides",
        lambda store, seed, point: TwoStage(PooledClasses(), _density(store, seed, point)),
    ),
}
