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
from components.lab.retrieve_then_classify import PerTask, RetrieveThenClassify
from components.lab.rivals import Ease, FirstLora, Joint, OneLora
from components.lab.single_classifier import CosineMeans, Flat, RandomRidge, StreamingLda
from components.lab.task_sequence import TaskData
from components.signatures.statistics import Statistics

Settings = Mapping[str, Any]  # one point of a method's grid


@dataclass(frozen=True)
class MethodEntry:
    """How a method is made from (workshop, seed, settings), and the settings it may be tuned over.

    adapted: it trains modules, which costs minutes. final_only: it means nothing before the last task has come.
    """

    what: str
    make: Callable[[ModuleStore, int, Settings], Method]
    grid: tuple[Settings, ...] = ({},)
    adapted: bool = False
    final_only: bool = False


def method_entry(name: str) -> MethodEntry:
    """A method by its name.

    Raises:
        IntaglioError: there is none of this name.
    """
    if name not in METHODS:
        raise IntaglioError(f"method {name!r}: unknown; known: {', '.join(METHODS)}")
    return METHODS[name]


def _frozen(
    what: str, signature: Callable[[ModuleStore, int, Settings], RetrievalSignature], **grid: Any
) -> MethodEntry:
    def make(store: ModuleStore, seed: int, settings: Settings) -> Method:
        return RetrieveThenClassify(signature(store, seed, settings), NoModules(store))

    return MethodEntry(what, make, **grid)


def _adapted(
    what: str, signature: Callable[[ModuleStore, int, Settings], RetrievalSignature], composed: bool, witnesses: int = 1
) -> MethodEntry:
    """`witnesses` of a class: 1, discriminants on what is adapted; 2, the pooled trunk too; 4, all that serve."""

    def make(store: ModuleStore, seed: int, settings: Settings) -> Method:
        modules: PerTask = TaskModules(store, seed, composed, served=witnesses == 4)
        found = signature(store, seed, settings)
        said = _trunk_of(found) if witnesses > 1 and isinstance(found, PooledClasses) else None
        return RetrieveThenClassify(found, modules, said)

    return MethodEntry(what, make, adapted=True)


def _base(store: ModuleStore, seed: int, settings: Settings) -> RetrievalSignature:
    """As served where `embedding.shared` is base."""
    return PooledClasses(compact=store.compact_statistics)


def _served(store: ModuleStore, seed: int, settings: Settings) -> RetrievalSignature:
    """The first task's module, which all tasks are seen under too, is the one that Modules trains for it."""
    first = FirstLora(store, seed)

    def compact(task: TaskData) -> Statistics:
        first.learn(task)
        return store.compact_statistics(task, first.name)

    return PooledClasses(first.embed, compact)


def _trunk_of(served: PooledClasses) -> PooledClasses:
    """What the trunk's part of the same statistics says."""

    def compact(task: TaskData) -> Statistics:
        return served.statistics(task).first(task.train.images.embedded.trunk_width)

    return PooledClasses(trunk_part, compact)


_SHRINKAGE: tuple[Settings, ...] = ({"shrinkage": None}, *({"shrinkage": own} for own in (1e-4, 1e-3, 1e-2, 0.1, 0.3)))
_RIDGE = tuple({"width": width, "ridge": ridge} for width in (2000, 4000) for ridge in (1e-4, 1e-3, 1e-2, 1e-1))
_CLUSTERS: tuple[Settings, ...] = ({"count": 5}, {"count": 20})

METHODS: dict[str, MethodEntry] = {
    "frozen_ncm": MethodEntry(
        "frozen backbone, nearest class mean by cosine (SimpleCIL)", lambda w, s, h: Flat(CosineMeans(), Frozen())
    ),
    "frozen_slda": MethodEntry(
        "frozen backbone, streaming LDA over all classes",
        lambda w, s, h: Flat(StreamingLda(h["shrinkage"]), Frozen()),
        _SHRINKAGE,
    ),
    "ranpac": MethodEntry(
        "frozen backbone, random projection and ridge regression (RanPAC)",
        lambda w, s, h: Flat(RandomRidge(h["width"], h["ridge"], s), Frozen()),
        _RIDGE,
    ),
    "first_slda": MethodEntry(
        "frozen beside a LoRA of the first task, streaming LDA (as APER)",
        lambda w, s, h: Flat(StreamingLda(h["shrinkage"]), FirstLora(w, s)),
        _SHRINKAGE,
        adapted=True,
    ),
    "first_ranpac": MethodEntry(
        "frozen beside a LoRA of the first task, then as ranpac (RanPAC with a first step)",
        lambda w, s, h: Flat(RandomRidge(h["width"], h["ridge"], s), FirstLora(w, s)),
        _RIDGE,
        adapted=True,
    ),
    "sequential_lora": MethodEntry(
        "one LoRA trained on and on, streaming LDA",
        lambda w, s, h: Flat(StreamingLda(), OneLora(w, s)),
        adapted=True,
    ),
    "joint_lora": MethodEntry(
        "one LoRA for all tasks at once, LDA over all classes (upper bound)",
        lambda w, s, h: Joint(w, StreamingLda, s),
        adapted=True,
        final_only=True,
    ),
    "s_prompts": _adapted(
        "k-means on h_0, a LoRA per task (S-Prompts)", lambda w, s, h: Centroids(5, s), composed=False
    ),
    "tuna": _adapted("a LoRA per task, the surest one answers (TUNA)", lambda w, s, h: Entropy(), composed=False),
    "ease": MethodEntry(
        "a LoRA per task, class means in all of their spaces (EASE)",
        lambda w, s, h: Ease(TaskModules(w, s, composed=False), h["others"]),
        ({"others": 0.1}, {"others": 1.0}),
        adapted=True,
    ),
    "paper": _adapted(
        "composed modules, DP-GMM on h_k (the paper's rule)",
        lambda w, s, h: Density(w.config.signature, s, adapted=True),
        composed=True,
    ),
    "intaglio": _adapted(
        "composed modules, pooled covariance on h_0 (ours, as served)", _served, composed=True, witnesses=4
    ),
    "intaglio_own": _adapted("the same, no module reuses another", _served, composed=False, witnesses=4),
    "intaglio_base": _adapted(
        "the same, retrieval in the frozen space alone (embedding.shared: base)", _base, composed=True, witnesses=4
    ),
    "intaglio_two": _adapted("the same, without head and own trunk discriminants", _base, composed=True, witnesses=2),
    "intaglio_alone": _adapted("the same, the adapted part alone names the class", _base, composed=True),
    "intaglio_frozen": MethodEntry(
        "the same without modules, with all of the scatter",
        lambda w, s, h: RetrieveThenClassify(PooledClasses(), NoModules(w), PooledClasses(trunk_part)),
    ),
    "signature_mean": _frozen("signature: the task's mean", lambda w, s, h: Centroids(1, s)),
    "signature_kmeans": _frozen(
        "signature: k-means centroids", lambda w, s, h: Centroids(h["count"], s), grid=_CLUSTERS
    ),
    "signature_gaussian": _frozen(
        "signature: one Gaussian",
        lambda w, s, h: Density(w.config.signature.model_copy(update={"components": 1}), s, adapted=False),
    ),
    "signature_dpgmm": _frozen(
        "signature: DP-GMM on h_0", lambda w, s, h: Density(w.config.signature, s, adapted=False)
    ),
    "signature_dpgmm_pooled": _frozen(
        "signature: DP-GMM means on h_0, pooled covariance", lambda w, s, h: PooledComponents(w.config.signature, s)
    ),
    "signature_trunk": _frozen(
        "signature: pooled covariance on the trunk's output", lambda w, s, h: PooledClasses(trunk_part)
    ),
    "signature_last": _frozen(
        "signature: pooled covariance on the last block's output", lambda w, s, h: PooledClasses(last_part)
    ),
    "signature_two_stage": _frozen(
        "signature: pooled covariance keeps two tasks, DP-GMM on h_0 decides",
        lambda w, s, h: TwoStage(PooledClasses(), Density(w.config.signature, s, adapted=False)),
    ),
}
