"""Which curves a run has: of text, of captions, of training; and which languages stand out."""

from collections.abc import Mapping
from dataclasses import replace

from train.measuring.results import BLIND, MEASURES
from train.reporting.alarm import INCREASE
from train.reporting.axes import running_mean
from train.reporting.content import LineChart, Series
from train.reporting.read import Curves

NUM_FLAGGED = 3  # worst languages that are named in a chart
FEW = 5  # languages up to which each is named
MANY_POINTS = 60  # of the training loss, from which on its running mean is drawn
MEAN = "mean"
TO_100 = ("chrf", "bleu")  # scores with a highest value


def held_out_charts(
    curves: Curves, prefix: str, tone: str, *, limit: float | None = None
) -> list[LineChart]:
    """Return a chart for each measure under `retention/` or `caption/` that was measured twice.

    Args:
        curves: of the run.
        prefix: `retention` or `caption`.
        tone: of the charts.
        limit: what the text loss over step 0 may be; None: no limit.
    """
    charts = []
    for measure in sorted(MEASURES.values(), key=lambda one: one.name == "nll"):  # least telling
        lines = by_language(curves, prefix, measure.name)
        if sum(len(values) > 1 for values in lines.values()):
            blind = curves.get(f"{prefix}/{MEAN}/{BLIND}{measure.name}", {})
            series = [*_series(lines, measure.is_highest_best), *_blind(blind)]
            most = highest(measure.name, measure.form)
            chart = LineChart(
                f"{prefix}-{measure.name}", _title(measure.title), _unit(measure.title),
                series, measure.form, tone=tone, note=_note(lines, bool(blind)), most=most,
            )  # fmt: skip
            is_limited = measure.name == INCREASE and limit is not None
            charts.append(_with_limit(chart, limit) if is_limited else chart)
    return charts


def highest(measure: str, form: str) -> float | None:
    """Return the highest that a measure can be: 1 of a share, 100 of some scores."""
    return 1.0 if form.endswith("%}") else 100.0 if measure in TO_100 else None


def training_charts(curves: Curves) -> list[LineChart]:
    """Return what training itself logged: losses, learning rates, gradients, speed, memory."""
    charts = [_loss_chart(curves)]
    charts += [
        _family(curves, "train/loss/language/", "Training loss by language", "nats a token"),
        _family(curves, "train/loss/source/", "Training loss by source", "nats a token"),
        _family(curves, "train/learning_rate/", "Learning rate", "by part", form="{:.2e}"),
        _family(curves, "train/grad_norm/", "Gradient norm", "before clipping",
                whole="train/grad_norm"),
        _family(curves, "", "Speed", "tokens a second", form="{:,.0f}",
                whole="perf/tokens_per_second"),
        _family(curves, "", "Utilisation", "share of peak FLOPs", form="{:.1%}", whole="perf/mfu"),
        _family(curves, "", "Waiting for data", "share of time", form="{:.1%}",
                whole="perf/data_wait_ratio"),
        _family(curves, "perf/memory_peak_gib/", "Memory, highest", "GiB by phase"),
    ]  # fmt: skip
    return [chart for chart in charts if chart is not None]


def by_language(curves: Curves, prefix: str, measure: str) -> Curves:
    """Return {language or "mean": {step: value}} of a measure."""
    start, end = f"{prefix}/", f"/{measure}"
    return {
        name[len(start) : -len(end)]: values
        for name, values in curves.items()
        if name.startswith(start) and name.endswith(end) and name.count("/") == 2
    }


def worst(values: Mapping[str, float], is_highest_best: bool, most: int = NUM_FLAGGED) -> list[str]:
    """Return the languages with the worst values, the worst first."""
    codes = [code for code in values if code != MEAN]
    return sorted(codes, key=lambda code: values[code] * (1 if is_highest_best else -1))[:most]


def _with_limit(chart: LineChart, limit: float | None) -> LineChart:
    note = f"{chart.note} The limit is of each group's mean over languages.".strip()
    return replace(chart, limit=limit, note=note)


def _series(lines: Curves, is_highest_best: bool) -> list[Series]:
    """Return the mean, the worst by name, and the others thin."""
    ends = {name: values[max(values)] for name, values in lines.items() if values}
    named = set(worst(ends, is_highest_best, NUM_FLAGGED if len(ends) > FEW + 1 else FEW))
    return [
        Series(
            name,
            list(values.items()),
            "main" if name == MEAN else "flag" if name in named else "rest",
        )
        for name, values in lines.items()
        if values
    ]


def _blind(values: Mapping[int, float]) -> list[Series]:
    return [Series("blind", list(values.items()), "blind")] if values else []


def _note(lines: Curves, has_blind: bool) -> str:
    shown = len([name for name in lines if name != MEAN])
    told = []
    if shown > FEW:
        told.append(f"The {NUM_FLAGGED} worst of {shown} languages are named.")
    if has_blind:
        told.append("Dashed: the mean with the pictures blanked.")
    return " ".join(told)


def _loss_chart(curves: Curves) -> LineChart | None:
    points = [(float(step), value) for step, value in curves.get("train/loss", {}).items()]
    if len(points) < 2:
        return None
    if len(points) < MANY_POINTS:
        series, note = [Series("loss", points, "main")], ""
    else:
        series = [Series("as logged", points, "rest"), Series("mean", running_mean(points), "main")]
        note = "Bold: running mean over a tenth of the run."
    return LineChart("train-loss", "Training loss", "nats a token", series, "{:.3f}", note=note)


def _family(
    curves: Curves, prefix: str, title: str, unit: str, *, form: str = "{:.3f}", whole: str = ""
) -> LineChart | None:
    """Return a chart of the metrics below a prefix, with the one that stands for all in bold."""
    lines = {
        name.removeprefix(prefix): values
        for name, values in curves.items()
        if prefix and name.startswith(prefix) and "/" not in name.removeprefix(prefix)
    }
    if not any(len(values) > 1 for values in [*lines.values(), curves.get(whole, {})]):
        return None
    ends = {name: values[max(values)] for name, values in lines.items()}
    named = worst(ends, False, FEW if len(ends) <= FEW else NUM_FLAGGED)
    series = [_smooth(n, v, "flag" if n in named else "rest") for n, v in lines.items()]
    is_long = any(len(v) >= MANY_POINTS for v in [*lines.values(), curves.get(whole, {})])
    if curves.get(whole):
        main = curves[whole]
        if is_long and not lines:
            series.append(Series("as logged", list(main.items()), "rest"))
        series.append(_smooth("all" if lines else title, main, "main"))
    name = (prefix or whole).strip("/").replace("/", "-").replace("_", "-")
    told = [] if len(lines) <= FEW else [f"The {NUM_FLAGGED} highest of {len(lines)} are named."]
    told += ["Running means over a tenth of the run."] if is_long else []
    return LineChart(name, title, unit, series, form, note=" ".join(told),
                     most=highest("", form))  # fmt: skip


def _smooth(name: str, values: Mapping[int, float], role: str) -> Series:
    """Return a line as it is, or where it has many points its running mean."""
    points = [(float(step), value) for step, value in values.items()]
    return Series(name, points if len(points) < MANY_POINTS else running_mean(points), role)


def _title(title: str) -> str:
    """Split what a measure is from its unit: "loss, nats a token"."""
    first = title.partition(",")[0]
    return first[:1].upper() + first[1:] if not first.startswith("chr") else first


def _unit(title: str) -> str:
    return title.partition(", ")[2] or "mean over languages in bold"
