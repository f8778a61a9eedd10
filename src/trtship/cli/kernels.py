"""How `trtship inspect --kernels` shows which kernels a plan runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtship.cli.console import Console
    from trtship.engine import KernelReport
    from trtship.engine.kernels import AttentionKernels, Placement


def show_kernels(report: KernelReport, console: Console) -> None:
    """Two tables: the attention blocks, and what the plan's layers are."""
    from trtship.cli.tables import table

    if report.attention:
        columns = ("attention block", "nodes", "windows x heads", "tokens", "depth", "kernel", "runs in")
        rows = [
            (b.name, f"{len(b.nodes)}", _number(b.maps), _number(b.tokens), _number(b.depth), b.state, _kernels(b))
            for b in report.attention
        ]
        console.print(table(columns, rows))
    states = [block.state for block in report.attention]
    fused = f"{states.count('fused')} of {len(states)} blocks in a fused kernel" + (
        f", {states.count('unknown')} unknown" if "unknown" in states else ""
    )
    kinds = ", ".join(f"{n} {kind or 'of no kind told'}" for kind, n in sorted(report.kinds.items(), key=_most_first))
    found = [
        ("attention", fused if states else "none in the graph"),
        ("layers", f"{report.layers}: {kinds}" if report.layers else "none"),
        ("GELU", _placed(report.gelu)),
        ("LayerNorm", _placed(report.layer_norm)),
        ("only move or convert data", _few(report.moving) or "none"),
        ("layers that name no node of the graph", _few(report.unjoined_layers) or "none"),
        ("names that no one node of it has", _few(report.unjoined_names) or "none"),
        ("told by", "; ".join(filter(None, (report.source, report.reason)))),
    ]
    console.print(table(("", ""), found))


def _most_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)


def _kernels(block: AttentionKernels) -> str:
    others = len(block.kernels) - 1
    return f"{block.fused_in}{f' and {others} more' if others else ''}" if block.fused_in else _few(block.kernels)


def _few(names: tuple[str, ...]) -> str:
    """At most three of them; `--json` has all."""
    if len(names) < 4:
        return ", ".join(names)
    return f"{len(names)}: {', '.join(names[:2])}, ..., {names[-1]}"


def _placed(found: Placement) -> str:
    if not found.nodes:
        return "none in the graph"
    parts = [f"{found.in_product} of {found.nodes} fused into a matrix product"]
    parts += [f"{found.apart} apart from them, in {found.kernels} kernels"] if found.apart else []
    parts += [f"{found.unknown} in no layer that TensorRT names"] if found.unknown else []
    return "; ".join(parts)
