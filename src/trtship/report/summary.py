"""The first screen: how right, how fast, against what."""

from __future__ import annotations

from markupsafe import Markup, escape

from trtship.bundle.candidates import Latency
from trtship.report.evidence import Evidence
from trtship.report.words import count, ms, points, size
from trtship.verify import Verdict


def accuracy(evidence: Evidence) -> list[Markup]:
    """Top-1 and relative L2 of what is closest to what is shipped: the plan, else the graph that it was built from."""
    m = evidence.manifest
    subjects = ("plan", f"graph {m.precision.value}", "graph fp32")
    ran = [v for v in m.verdicts if v.state != "not run"]
    subject = next((s for s in subjects if any(v.subject == s for v in ran)), None)
    if subject is None:
        return [Markup("not measured")]
    found = [line for v in ran if v.subject == subject and (line := _accuracy(v))]
    if subject != "plan":
        found.append(Markup("of the {}: the plan itself was not run").format(subject))
    return found


def _accuracy(verdict: Verdict) -> Markup | None:
    if (e := verdict.evaluation) is not None:
        text = f"top-1 {e.top1:.2f} %, the original {e.top1_original:.2f} %, on {e.pictures} pictures"
        if e.drop_low is None or e.drop_high is None:
            return escape(text)
        return escape(f"{text}; the drop lies in {points(e.drop_low)} to {points(e.drop_high)} points (95 %)")
    if verdict.gate != "rel_l2" or verdict.bound is None:
        return None
    return Markup("relative L2 {}, bound {}").format(size(verdict.worst), size(verdict.held_to))


def speed(evidence: Evidence) -> list[tuple[Markup, bool]]:
    """A line for each batch, and whether it is bad news: no time, or something else that is right is faster."""
    if evidence.bench is not None:
        return _against_peers(evidence)
    choice = evidence.choice
    shipped = next((c for c in choice.candidates if c.outcome == "shipped"), None) if choice else None
    if choice is None or shipped is None or not shipped.latency:
        return [(Markup("not measured"), True)]
    eager = {one.batch: one for one in choice.eager}
    found = [_against_eager(one, eager.get(one.batch)) for one in shipped.latency]
    return [*found, (Markup("on {}").format(choice.timed_on or "a GPU without a name"), False)]


def _against_eager(ours: Latency, eager: Latency | None) -> tuple[Markup, bool]:
    text = Markup("batch {}: {} ms, {} images/s").format(ours.batch, ms(ours.ms), count(ours.batch / ours.ms * 1e3))
    if eager is None:
        return text, False
    times = eager.ms / ours.ms
    more = Markup("; {} times as fast as eager PyTorch ({} ms)").format(f"{times:.2f}", ms(eager.ms))
    return text + more, times < 1


def _against_peers(evidence: Evidence) -> list[tuple[Markup, bool]]:
    report = evidence.bench
    assert report is not None
    found = []
    for batch in sorted({row.batch for row in report.rows}):
        ours, ratio = report.figures(batch, ours=True), report.ratio(batch)
        if not ours:
            found.append((Markup("batch {}: not timed, or wrong").format(batch), True))
            continue
        best = min(ours.values())
        text = Markup("batch {}: {} ms, {} images/s").format(batch, ms(best), count(batch / best * 1e3))
        if ratio is None:
            found.append((text + "; no peer was timed", False))
            continue
        more = Markup("; {} times as fast as {} ({} ms)").format(f"{ratio.ratio:.2f}", ratio.peer, ms(ratio.peer_ms))
        found.append((text + more, ratio.ratio < 1))
    return [*found, (escape(f"on {report.gpu.name}" if report.gpu else "on a CPU: to try it out"), False)]
