"""README's tables, from `benchmarks/results/*.json`.

python benchmarks/tables.py          # rewrites the tables in README.md
python benchmarks/tables.py --check  # exits with 1 when they are not what the results say
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from trtship.bench import BenchReport

ROOT = Path(__file__).resolve().parent.parent
HEADLINE = "swin_t"
LARGEST = 4
NOT_OURS = ("python", "import numpy")
RESULTS = ROOT / "benchmarks" / "results"


def rows(header: list[str], body: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def where(document: dict[str, Any]) -> str:
    gpus = document["machine"]["gpus"]
    names = cards(g["name"] for g in gpus) or f"{document['machine'].get('cpus')} CPU cores, no GPU"
    return f"{names}, {what_ran(document)}"


def cards(names: Iterable[str]) -> str:
    return ", ".join(f"{many} {name}" if many > 1 else name for name, many in Counter(names).items())


def what_ran(document: dict[str, Any]) -> str:
    family = document["versions"].get("tensorrt_rtx") or document["versions"].get("tensorrt")
    return f"TensorRT for RTX {family}, torch {document['versions']['torch']}, {document['date'][:10]}"


def gpu_table() -> str:
    document = json.loads((RESULTS / "gpu_suite.json").read_text())
    body = []
    for name, test in document["tests"].items():
        match = re.search(r"every_size\[(\w+)\]", name)
        if not match:
            continue
        if test["outcome"] != "passed":
            body.append([match[1], "", "", "", test["outcome"]])
            continue
        plan = next(v for v in test["verdicts"] if v["subject"] == "plan")
        batches = ", ".join(str(m["sizes"]["B"]) for m in plan["measures"])
        bound = plan["bound"]["value"]
        body.append([match[1], f"{plan['worst']:.2e}", f"{bound:.2e}", batches, plan["state"]])
    body.sort(key=lambda row: ["fp32", "tf32", "fp16", "bf16"].index(row[0]))
    tests = document["tests"].values()
    states = [t["outcome"] for t in tests]
    counts = ", ".join(f"{states.count(s)} {s}" for s in ("passed", "failed", "skipped") if s in states)
    places = Counter(cards(t["gpus"]) for t in tests).most_common()
    on = ", ".join(f"{many} on {place}" for place, many in places)
    table = rows(["Swin-T plan", "relative L2, worst row", "bound", "batches", "verdict"], body)
    suite = f"GPU suite, the last run of each test: {counts}; {on}. {what_ran(document)}."
    return f"{table}\n\nThe saved plan against eager PyTorch in fp32. {suite}"


def overhead_table() -> str:
    document = json.loads((RESULTS / "session_overhead.json").read_text())
    body = [
        [
            str(r["batch"]),
            f"{r['raw_back_to_back_us']:.0f}",
            f"{r['session_back_to_back_us']:.0f}",
            f"{r['throughput_ratio']:.3f}",
            f"{r['added_us']:.0f}",
        ]
        for r in document["rows"]
    ]
    header = ["batch", "raw, us", "session, us", "raw / session", "added to one synchronized call, us"]
    mapped = document["map"]
    about = (
        "`trtship.load` on device tensors against raw replay of a CUDA graph of the same plan. Host images through "
        f"`session.map` at batch {mapped['batch']}: {mapped['map_plain_images_per_s']:.0f} images/s, "
        f"{mapped['map_plain_ratio']:.3f} of raw replay ({mapped['map_pinned_ratio']:.3f} from pinned memory)"
    )
    about = f"{about}; {document['model']}, {document['precision']}. {where(document)}."
    soaks = [json.loads(path.read_text()) for path in RESULTS.glob("soak*.json")]
    soaks.sort(key=lambda document: document["date"], reverse=True)
    return "\n\n".join([rows(header, body), about, warm_start(), *map(soak, soaks)])


def warm_start() -> str:
    document = json.loads((RESULTS / "warm_start.json").read_text())
    cold, warm = document["cold"], document["warm"]
    return (
        f"A new process has its first result {warm['to_first_result']:.2f} s after it calls `load` where kernels were "
        f"kept (median of {warm['runs']}, the slowest {warm['slowest']:.2f}), {cold['to_first_result']:.1f} s where "
        f"none were, which TensorRT for RTX compiles then; {document['model']}. {where(document)}."
    )


def soak(document: dict[str, Any]) -> str:
    calls = sum(count for way, count in document["calls"].items() if way not in ("images", "cancelled"))
    sizes = document["sizes"]
    all_between = sizes == list(range(sizes[0], sizes[-1] + 1))
    which = f"{sizes[0]} to {sizes[-1]}" if all_between else ", ".join(map(str, sizes))
    grown = document["growth_mib"]
    cut = " (cut off, not at its end)" if document["verdict"] == "not ended" else ""
    return (
        f"Soak, {document['minutes']:.1f} minutes{cut}: {document['threads']} threads, batches of {which}; "
        f"{document['calls'].get('cancelled', 0)} calls were cancelled; of {calls} {document['fault_count']} failed "
        f"or gave what is not the model's (worst relative L2 {document['worst_relative_l2']:.1e}); after "
        f"{document['warm_up_seconds']:.0f} s the GPU's memory grew by {grown['gpu_used']:.0f} MiB, of which the "
        f"session counts {grown['session']:.0f}, the process by {grown['rss']:.0f}. {where(document)}."
    )


def deploy_table() -> str:
    document = json.loads((RESULTS / "deploy_time.json").read_text())
    body = [
        [k, f"{v['seconds']:g}", f"{v['peak_mib']}" if "peak_mib" in v else ""] for k, v in document["rows"].items()
    ]
    return f"{rows([document['what'], 'seconds', 'peak MiB'], body)}\n\n{where(document)}."


def bench_reports() -> list[tuple[dict[str, Any], BenchReport]]:
    """What `swin_bench.py` wrote, the headline's model first."""
    from trtship.bench import BenchReport

    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("bench_*.json"))]
    found.sort(key=lambda document: document["model"] != HEADLINE)
    return [(document, msgspec.convert(document["report"], BenchReport)) for document in found]


BENCH_HEADER = ["batch", "trtship, ms", "images/s", "best peer", "its ms", "times as fast", "error", "its error"]
ABOUT_BENCH = (
    "GPU milliseconds a batch, everybody in one run, interleaved, inputs on the GPU. trtship is the median of its "
    "builds; of each peer it is the fastest variant and build that is right. Errors are relative L2, worst row, "
    "against PyTorch in float64."
)


def bench_table() -> str:
    """The headline: ours against every peer, by GPU time."""
    document, report = bench_reports()[0]
    peers = list(dict.fromkeys(family_of(row.name) for row in report.rows if not row.ours))
    body = [
        [*bench_row(report, batch), *[peer_cell(report, batch, peer) for peer in peers]] for batch in batches_of(report)
    ]
    note = f"`{document['model']}`, {document['precision']}. {where(document)}."
    return f"{rows([*BENCH_HEADER, *peers], body)}\n\n{note}\n\n{ABOUT_BENCH}"


def others_table() -> str:
    """The other models, against the best peer."""
    body = [
        [document["model"], *bench_row(report, batch)]
        for document, report in bench_reports()[1:]
        for batch in batches_of(report)
    ]
    places = sorted({where(document) for document, _ in bench_reports()[1:]})
    return f"{rows(['model', *BENCH_HEADER], body)}\n\nfp16, timed as the table at the top is. {'; '.join(places)}."


def batches_of(report: BenchReport) -> list[int]:
    return list(dict.fromkeys(row.batch for row in report.rows))


def family_of(name: str) -> str:
    """Variants of a peer differ after the first comma."""
    name = name.split(",")[0]
    return {"compile": "torch.compile"}.get(name, name)  # one that was not made ready goes by its peer's name


def bench_row(report: BenchReport, batch: int) -> list[str]:
    found = report.ratio(batch)
    if found is None:
        return [str(batch), *[""] * (len(BENCH_HEADER) - 1)]
    errors = [
        max(
            (
                row.exact_error.rel_l2
                for row in report.rows
                if (row.batch, row.name) == (batch, name) and row.counts and row.exact_error and row.exact_error.rel_l2
            ),
            default=None,
        )
        for name in (found.ours, found.peer)
    ]
    return [
        str(batch),
        f"{found.ours_ms:.3f}",
        f"{batch / found.ours_ms * 1e3:.0f}",
        found.peer,
        f"{found.peer_ms:.3f}",
        f"{found.ratio:.2f}",
        *["" if error is None else f"{error:.1e}" for error in errors],
    ]


def peer_cell(report: BenchReport, batch: int, peer: str) -> str:
    own = [row for row in report.rows if row.batch == batch and not row.ours and family_of(row.name) == peer]
    times = [row.gpu.median_ms for row in own if row.counts and row.gpu]
    return f"{min(times):.3f}" if times else "wrong" if any(row.gpu for row in own) else "not timed" if own else ""


def plain_table() -> str:
    document = json.loads((RESULTS / "plain_ratio.json").read_text())
    body = [
        [
            r["model"],
            str(r["batch"]),
            *["failed" if r[k] is None else f"{r[k]:.3f}" for k in ("ours_ms", "plain_ms", "ratio")],
            *["" if r[k] is None else f"{r[k]:.1e}" for k in ("ours_error", "plain_error")],
        ]
        for r in document["rows"]
    ]
    header = ["model", "batch", "trtship, ms", "plain ONNX -> TensorRT, ms", "times as fast", "error", "its error"]
    about = "fp16, median of the builds; errors are relative L2 against PyTorch in float64."
    return f"{rows(header, body)}\n\n{about} {where(document)}."


def install_table() -> str:
    document = json.loads((RESULTS / "install_size.json").read_text())
    body = []
    for r in document["rows"]:
        largest = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in list(r["packages"].items())[:LARGEST])
        body.append([f"`trtship[{r['extras']}]`", f"{r['bytes'] / 1e6:.0f}", str(len(r["packages"])), largest])
    table = rows(["installed", "MB", "packages", "the largest of them, MB"], body)
    starts = document["rows"][0]["starts_ms"]
    times = ", ".join(f"`{name}` {ms} ms" for name, ms in starts.items() if name not in NOT_OURS)
    bare = ", ".join(f"{name} {starts[name]} ms" for name in NOT_OURS)
    about = "All installed files; MB are 10^6 bytes. Whole processes in the first environment, median: "
    return f"{table}\n\n{about}{times} ({bare}). {where(document)}."


TABLES: dict[str, Callable[[], str]] = {"gpu": gpu_table, "overhead": overhead_table, "deploy": deploy_table}
TABLES["install"] = install_table
if list(RESULTS.glob("bench_*.json")):
    TABLES["bench"], TABLES["others"] = bench_table, others_table
if (RESULTS / "plain_ratio.json").exists():
    TABLES["plain"] = plain_table


def fill(text: str) -> str:
    """README with each `<!-- table: NAME -->` ... `<!-- end -->` filled in."""
    return re.sub(
        r"<!-- table: (\w+) -->\n.*?<!-- end -->",
        lambda m: f"<!-- table: {m[1]} -->\n{TABLES[m[1]]()}\n<!-- end -->",
        text,
        flags=re.DOTALL,
    )


def main() -> int:
    readme = ROOT / "README.md"
    before = readme.read_text()
    after = fill(before)
    if "--check" in sys.argv:
        return int(before != after)
    readme.write_text(after)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
