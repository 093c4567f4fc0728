"""What papers print of the methods that everline has: plain figures, each with its source.

LeMO   Gao, Luo, Shen: "Towards Total Online Unsupervised Anomaly Detection and Localization in Industrial Vision"
K-NG   Wei et al.: "Few-shot Online Anomaly Detection and Segmentation"
SMCC   Liu, Gao, Wen, Luo: "Unsupervised Image Anomaly Detection and Localization in Industry Based on Self-Updated
       Memory and Center Clustering"

Figures are shares of one under names of METRICS, as in a record: a paper's 98.5 % is 0.985 here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Figures = Mapping[str, float]

CLASSES = {"btad": 3, "dagm": 10, "mpdd": 6, "mvtec": 15, "visa": 12}  # how many a paper's mean is over


@dataclass(frozen=True, kw_only=True)
class Published:
    """One method on one data set, as a paper prints it.

    params, options: name -> the values of which a run must have one, for this row to answer for it; None is an
    option that was not given. setting: what else the paper says of its parameters. backbone: None where it is not
    said. crop: side to which pictures were resized before their middle of side `size` was cut out, if they were.
    mean: over all classes, as printed. rows: of each class, or (protocol drift) of each kind of drift, over all
    classes. offline, offline_rows: the same without learning.
    """

    source: str
    label: str
    dataset: str
    protocol: str
    method: str
    params: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    setting: Mapping[str, Any] = field(default_factory=dict)
    backbone: str | None
    size: int = 224
    crop: int | None = None
    mean: Figures = field(default_factory=dict)
    rows: Mapping[str, Figures] = field(default_factory=dict)
    offline: Figures = field(default_factory=dict)
    offline_rows: Mapping[str, Figures] = field(default_factory=dict)
    note: str = ""

    def answers(self, params: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        """Whether this row is one for a run with these parameters and options."""
        pairs = ((self.params, params), (self.options, options))
        return all(given.get(name) in allowed for wanted, given in pairs for name, allowed in wanted.items())

    def differences(self, params: Mapping[str, Any]) -> list[str]:
        """Where a run's parameters are not the paper's, as `name ours (theirs)`."""
        wanted = {"backbone": self.backbone, "size": self.size, **self.setting}
        found = [
            f"{name} {_said(params.get(name))} ({_said(value)})"
            for name, value in wanted.items()
            if value is not None and _said(params.get(name)) != _said(value)
        ]
        return found + (["weights none (of ImageNet)"] if params.get("weights") == "none" else [])


def published(
    dataset: str, protocol: str, method: str, params: Mapping[str, Any], options: Mapping[str, Any]
) -> list[Published]:
    """The rows that answer for a run, given by what its record says: none, one, or several."""
    run = (dataset, protocol, method)
    return [row for row in ROWS if (row.dataset, row.protocol, row.method) == run and row.answers(params, options)]


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(str(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


# -- the figures, in per cent as printed

MVTEC = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw", "tile",
    "toothbrush", "transistor", "wood", "zipper",
)  # fmt: skip


def _figures(image: float | None = None, pixel: float | None = None, aupro: float | None = None) -> Figures:
    pairs = {"image_auroc": image, "pixel_auroc": pixel, "aupro": aupro}
    return {name: round(value / 100, 4) for name, value in pairs.items() if value is not None}


def _mvtec(**columns: tuple[float, ...]) -> dict[str, Figures]:
    """Columns in the order of MVTEC, as the figures of each class."""
    return {name: _figures(**{key: column[n] for key, column in columns.items()}) for n, name in enumerate(MVTEC)}


def _lemo(source: str, protocol: str, dataset: str, updates: tuple[str, ...], **rest: Any) -> Published:
    """Section 4.1; table 2 tells the updates L and F apart, the other tables do not."""
    return Published(
        source=f"LeMO, {source}",
        label=f"LeMO-{updates[0]}" if len(updates) == 1 else "LeMO, L or F not said",
        protocol=protocol, dataset=dataset, method="lemo", backbone="wide_resnet50_2", crop=256,
        params={"update": updates},
        setting={
            "strides": (8, 16, 32), "prototypes": 10, "init": "orthogonal", "projector": "uniform",
            "score_rule": "softmin", "whiten": False, "lr": 1e-3, "weight_decay": 5e-4, "margin": 1e-5,
        },
        **rest,
    )  # fmt: skip


def _lemos_patchcore(source: str, protocol: str, dataset: str, form: str, **rest: Any) -> Published:
    """What LeMO's authors measured of PatchCore: moving (`ema`), or offline."""
    return Published(
        source=f"LeMO, {source}",
        label="PatchCore with EMA" if form == "ema" else "PatchCore",
        protocol=protocol, dataset=dataset, method="patchcore", params={"form": (form,)}, **rest,
    )  # fmt: skip


_WIDE: dict[str, Any] = {"backbone": "wide_resnet50_2", "crop": 256}
_QUOTED: dict[str, Any] = {"backbone": None, "note": "LeMO takes these figures from IM-IAD and gives no setting."}
_LEVELS = "The paper does not give its levels of drift."
_WHICH = f"{_LEVELS} Its figure without drift is that of LeMO-L in table 2."

LEMO = [
    _lemo("table 2", "online", "mvtec", ("L",), mean=_figures(96.7, 97.1, 90.9)),
    _lemo("table 2", "online", "visa", ("L",), mean=_figures(94.3, 98.6, 91.7)),
    _lemo("table 2", "online", "mpdd", ("L",), mean=_figures(86.6, 97.7, 91.6)),
    _lemo("table 2", "online", "mvtec", ("F",), mean=_figures(97.2, 97.6, 91.7)),
    _lemo("table 2", "online", "visa", ("F",), mean=_figures(93.4, 98.7, 91.6)),
    _lemo("table 2", "online", "mpdd", ("F",), mean=_figures(87.4, 97.8, 91.9)),
    _lemos_patchcore("table 2", "online", "mvtec", "ema", mean=_figures(87.2, 93.4, 92.9), **_WIDE),
    _lemos_patchcore("table 2", "online", "visa", "ema", mean=_figures(80.1, 94.6, 93.8), **_WIDE),
    _lemos_patchcore("table 2", "online", "mpdd", "ema", mean=_figures(72.1, 95.4, 95.3), **_WIDE),
    _lemo(
        "table 4", "drift", "mvtec", ("L", "F"), note=_WHICH,
        rows={"none": _figures(96.7), "brightness": _figures(96.1), "noise": _figures(95.2)},
    ),
    _lemos_patchcore(
        "table 4", "drift", "mvtec", "ema", note=_LEVELS, **_WIDE,
        rows={"none": _figures(87.2), "brightness": _figures(76.7), "noise": _figures(72.4)},
    ),
    _lemos_patchcore(
        "table 4", "drift", "mvtec", "offline", note=_LEVELS, **_WIDE, rows={"none": _figures(99.2)},
        offline_rows={"brightness": _figures(91.4), "noise": _figures(72.2)},
    ),
    *(
        _lemo("table 5", "offline", dataset, ("L", "F"), options={"shots": (None,)}, mean=_figures(image))
        for dataset, image in (("mvtec", 99.0), ("visa", 95.5), ("mpdd", 92.2))
    ),
    *(
        _lemo(
            "table 5", "offline", "mvtec", ("L", "F"), options={"shots": (shots,)}, mean=_figures(image),
            note=f"The paper's deviation is {deviation:g}.",
        )
        for shots, image, deviation in ((1, 85.5, 0.0111), (2, 87.9, 0.0130), (4, 88.7, 0.0007), (8, 90.8, 0.0087))
    ),
    *(
        _lemos_patchcore(
            "table 5", "offline", dataset, "offline", options={"shots": (shots,)}, mean=_figures(image), **_QUOTED
        )
        for dataset, shots, image in (
            ("mvtec", None, 99.2), ("visa", None, 95.1), ("mpdd", None, 94.8),
            ("mvtec", 1, 61.9), ("mvtec", 2, 72.1), ("mvtec", 4, 81.7), ("mvtec", 8, 86.4),
        )
    ),
]  # fmt: skip

_MAIN = {"nodes": 3136, "threshold": "mean", "age_max": 25}  # what tables 3 to 5 vary, as table 8 has it
_STREAM = "The paper's stream holds every defect, in sessions whose length it does not give."
_FOADS: dict[str, Any] = {"protocol": "fewshot", "backbone": "resnet18", "crop": 256}


def _kng(table: str, dataset: str, shots: int = 10, params: Mapping[str, Any] | None = None, **rest: Any) -> Published:
    """Section 4.7. `params`: what an ablation changes; all else must then be as the paper has it."""
    return Published(
        source=f"K-NG, {table}", label="K-NG", dataset=dataset, method="kng", **_FOADS,
        params={name: (value,) for name, value in {"shots": shots, **(params or {})}.items()},
        options={"shots": (shots,)},
        setting={
            "strides": (4, 8, 16), "dimensions": 100, "epochs": 10, "batch": 10, "ageing": "graph", "prior": 0.0,
            **_MAIN, **(params or {}),
        },
        **rest,
    )  # fmt: skip


def _ablation(table: str, image: float, pixel: float, aupro: float, shots: int = 10, **changed: Any) -> Published:
    return _kng(table, "mvtec", shots, {**_MAIN, **changed}, mean=_figures(image, pixel, aupro), note=_STREAM)


KNG = [
    _kng(
        "table 8, pixel AUROC of table 5", "mvtec", note=_STREAM,
        mean=_figures(87.3, 95.1, 87.8), offline=_figures(78.2, None, 82.8),
        rows=_mvtec(
            image=(99.8, 84.2, 86.6, 94.9, 58.6, 97.2, 98.7, 94.1, 81.6, 61.4, 90.6, 89.7, 81.1, 99.6, 91.5),
            aupro=(96.4, 77.3, 93.4, 95.4, 79.9, 93.3, 98.4, 83.7, 91.4, 86.6, 78.1, 88.1, 67.6, 94.3, 92.9),
        ),
        offline_rows=_mvtec(
            image=(99.6, 65.4, 80.8, 78.4, 48.1, 97.5, 93.2, 83.0, 69.7, 57.5, 86.7, 69.5, 66.6, 97.2, 79.3),
            aupro=(96.1, 69.0, 92.4, 88.3, 59.7, 93.7, 97.1, 77.7, 88.1, 85.8, 73.8, 78.8, 62.2, 92.0, 86.7),
        ),
    ),
    _kng("section 4.4", "btad", mean=_figures(86.5, None, 92.8), note=_STREAM),
    _ablation("table 3", 83.4, 93.2, 83.1, nodes=196),
    _ablation("table 3", 86.9, 94.7, 86.8, nodes=784),
    _ablation("table 3", 86.3, 95.1, 87.5, nodes=1764),
    _ablation("table 4", 87.0, 95.1, 87.7, age_max=5),
    _ablation("table 4", 87.1, 95.1, 87.7, age_max=10),
    _ablation("table 4", 87.2, 95.1, 87.7, age_max=50),
    _ablation("table 4", 86.9, 95.1, 87.7, age_max=100),
    _ablation("table 4", 86.8, 95.1, 87.8, age_max=500),
    _ablation("table 4", 86.8, 95.1, 87.8, age_max=1500),
    _ablation("table 5", 87.2, 94.7, 87.1, threshold="min"),
    _ablation("table 5", 86.1, 95.0, 87.6, threshold="max"),
    _ablation("table 5", 86.3, 95.0, 87.5, threshold="none"),
    _ablation("table 6", 85.3, 94.9, 87.2, shots=5),
    _ablation("table 6", 88.1, 95.8, 89.4, shots=20),
    _ablation("table 6", 88.3, 96.1, 90.0, shots=30),
    _ablation("table 6", 89.8, 96.4, 90.4, shots=50),
    Published(
        source="K-NG, table 8", label="PatchCore", dataset="mvtec", method="patchcore", **_FOADS,
        params={"form": ("pseudo",), "first": (10,)}, options={"shots": (10,)}, setting={"strides": (4, 8, 16)},
        note=f"{_STREAM} Its PatchCore has 100 of the channels, ours has all.",
        mean=_figures(84.9, None, 85.8), offline=_figures(85.4, None, 86.7),
        rows=_mvtec(
            image=(97.3, 77.4, 81.9, 95.9, 67.8, 95.8, 95.6, 71.4, 83.9, 53.5, 94.6, 78.9, 89.5, 98.0, 91.3),
            aupro=(94.1, 80.6, 90.5, 95.7, 59.8, 85.7, 95.0, 81.4, 84.9, 71.2, 85.7, 91.4, 90.5, 89.5, 90.6),
        ),
        offline_rows=_mvtec(
            image=(100.0, 77.6, 78.4, 98.5, 69.9, 96.3, 99.8, 75.7, 80.2, 50.3, 97.3, 77.3, 88.7, 99.0, 92.2),
            aupro=(97.5, 79.5, 90.9, 97.3, 58.1, 87.1, 98.3, 86.4, 86.5, 73.6, 91.2, 79.8, 85.8, 93.3, 94.4),
        ),
    ),
    Published(
        source="K-NG, table 8", label="PaDiM", dataset="mvtec", method="padim", **_FOADS,
        options={"shots": (10,)}, setting={"strides": (4, 8, 16), "channels": 100},
        note=f"{_STREAM} Its PaDiM learns what scores below a fixed threshold, ours learns all that it is shown.",
        mean=_figures(77.7, None, 83.1), offline=_figures(77.4, None, 82.6),
        rows=_mvtec(
            image=(99.0, 58.0, 72.7, 92.6, 58.2, 93.2, 97.3, 68.4, 52.7, 48.8, 85.4, 79.3, 84.5, 96.8, 79.0),
            aupro=(96.5, 61.6, 92.0, 94.2, 50.6, 92.4, 98.2, 76.1, 86.6, 79.8, 76.0, 82.5, 78.1, 94.0, 88.1),
        ),
        offline_rows=_mvtec(
            image=(99.0, 57.6, 71.9, 91.0, 55.3, 93.3, 97.2, 68.9, 53.7, 49.8, 84.1, 79.3, 84.9, 97.4, 78.0),
            aupro=(96.5, 61.0, 92.0, 93.7, 48.0, 92.3, 98.1, 75.5, 86.4, 79.7, 75.6, 82.0, 77.1, 93.8, 87.6),
        ),
    ),
]  # fmt: skip


def _smcc(source: str, dataset: str, backbone: str = "wide_resnet50_2", **rest: Any) -> Published:
    """Table II. Of other backbones there are means only."""
    params = {} if backbone == "wide_resnet50_2" else {"backbone": (backbone,)}
    return Published(
        source=f"SMCC, {source}", label="SMCC", dataset=dataset, protocol="offline", method="smcc",
        params=params, options={"shots": (None,)}, backbone=backbone,
        setting={
            "strides": (4, 8, 16, 32), "centers": 10, "bank": 16, "sampling": 0.1, "lr": 1e-3, "weight_decay": 5e-4,
        },
        **rest,
    )  # fmt: skip


_TRAINED = "The paper trains its backbone, in epochs; ours learns each image once behind a frozen one."

SMCC = [
    _smcc(
        "tables V and VI", "mvtec", mean=_figures(98.5, 98.3, 93.8),
        note=f"{_TRAINED} Its tables III and VII print 98.2 for pixel AUROC and 93.1 for AUPRO.",
        rows=_mvtec(
            image=(100.0, 96.6, 96.6, 100.0, 99.3, 100.0, 100.0, 99.6, 96.5, 91.1, 100.0, 100.0, 100.0, 99.6, 98.5),
            pixel=(98.8, 98.6, 99.1, 99.1, 97.7, 98.9, 99.3, 99.3, 98.8, 98.3, 96.2, 99.1, 97.7, 94.5, 98.9),
            aupro=(95.6, 91.5, 94.2, 95.6, 93.6, 96.0, 96.8, 95.2, 96.6, 93.0, 87.4, 91.6, 94.8, 89.7, 95.7),
        ),
    ),
    _smcc("table III", "mvtec", "resnet18", mean=_figures(97.2, 97.9, 93.0), note=_TRAINED),
    _smcc("table III", "mvtec", "resnet50", mean=_figures(97.8, 98.0, 93.0), note=_TRAINED),
    _smcc("table VIII", "btad", mean=_figures(None, 96.6), note=_TRAINED),
    _smcc("table VIII", "dagm", mean=_figures(None, 97.1), note=_TRAINED),
    Published(
        source="SMCC, tables V and VI", label="PaDiM", dataset="mvtec", protocol="offline", method="padim",
        options={"shots": (None,)}, backbone=None, mean=_figures(97.9, 97.5, 92.1),
        note="SMCC quotes these figures and gives no setting.",
        rows=_mvtec(
            pixel=(98.3, 96.7, 98.5, 99.1, 97.3, 98.2, 99.2, 97.2, 95.7, 98.5, 94.1, 97.5, 98.5, 94.9, 97.8),
            aupro=(94.8, 88.8, 93.5, 96.2, 94.6, 92.6, 97.8, 85.6, 92.7, 94.4, 86.0, 93.1, 84.5, 91.1, 95.9),
        ),
    ),
    Published(
        source="SMCC, table VII", label="PaDiM", dataset="mvtec", protocol="offline", method="padim",
        options={"shots": (None,)}, backbone="wide_resnet50_2", mean=_figures(95.5, 97.5, 92.1),
    ),
]  # fmt: skip

ROWS = [*LEMO, *KNG, *SMCC]
