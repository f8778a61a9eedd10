"""A bundle checked in a process of its own: `python -m trtship.deployment.search.check_process BUNDLE ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from trtship.bench.reasons import reason_of
from trtship.bundle.bundle import Bundle
from trtship.bundle.verify import check_bundle
from trtship.files import temporary_folder
from trtship.processes import end, how_it_ended, keep_stdout, last_words, start
from trtship.progress import Progress
from trtship.spec import Record
from trtship.verify import Verdict


class Answer(Record, frozen=True):
    """The verdicts, or why there are none; what is known before, on the way there."""

    verdicts: tuple[Verdict, ...] = ()
    failed: str = ""


def check_apart(
    bundle: Bundle, *, eval_dir: Path | None, family: str, known: Sequence[Verdict] = (), progress: Progress
) -> tuple[Verdict, ...]:
    """`check_bundle` there. A process that ends without an answer fails the plan, with its last words."""
    rest = [] if eval_dir is None else [str(eval_dir.absolute())]
    with temporary_folder() as folder, progress.stage("verify", bundle.manifest.precision.value):
        before = folder / "known.json"
        before.write_bytes(msgspec.json.encode(Answer(verdicts=tuple(known))))
        arguments = [str(bundle.folder.absolute()), family, str(before), *rest]
        log = folder / "stderr.txt"
        process = start("trtship.deployment.search.check_process", *arguments, log=log)
        try:
            found, _ = process.communicate()
        finally:
            end(process)
        last = last_words(log)
    try:
        answer = msgspec.json.decode(found, type=Answer)
    except msgspec.MsgspecError:
        answer = Answer(
            failed=f"the process that ran it {how_it_ended(process.returncode)}" + (f": {last}" if last else "")
        )
    if answer.failed:
        return (Verdict(subject="plan", gate="rel_l2", state="failed", reason=answer.failed),)
    return answer.verdicts


def main(arguments: Sequence[str]) -> int:
    answers = keep_stdout()
    try:
        folder, family, before, *rest = arguments
        known = msgspec.json.decode(Path(before).read_bytes(), type=Answer).verdicts
        eval_dir = Path(rest[0]) if rest else None
        found = check_bundle(Bundle.open(folder), eval_dir=eval_dir, family=family, known=known)
        answer = Answer(verdicts=found)
    except Exception as error:
        answer = Answer(failed=reason_of(error))
    answers.write(msgspec.json.encode(answer))
    answers.flush()
    return int(bool(answer.failed))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
