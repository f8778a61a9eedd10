"""Building a library's model: seeded, its errors turned into the user's, its hub asked only where it answers."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from trtship.errors import MachineError, SourceError, TrtshipError
from trtship.needs import need
from trtship.sources.inputs import one_line
from trtship.sources.options import SourceOptions

REACH_TIMEOUT_S = 5.0


def build(options: SourceOptions, make: Callable[[], Any]) -> Any:
    """What `make` returns, with torch's random numbers seeded by `options.seed` and left as they were.

    Raises SourceError with the reason when it fails, MachineError when pretrained weights cannot be fetched.
    """
    torch = need("torch", purpose="building a model")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(options.seed)
        try:
            return make()
        except TrtshipError:
            raise
        except OSError as error:
            if not options.pretrained:
                raise _cannot_build(options, error) from error
            raise MachineError(
                f"cannot get the pretrained weights of {options.source}",
                why=one_line(error),
                do="connect this machine to the hub, or fetch the weights elsewhere and use --checkpoint",
            ) from error
        except Exception as error:
            raise _cannot_build(options, error) from error


def _cannot_build(options: SourceOptions, error: Exception) -> SourceError:
    arguments = ", ".join(f"{name}={value}" for name, value in options.model_args)
    return SourceError(
        f"cannot build {options.source}" + (f" with {arguments}" if arguments else ""),
        why=one_line(error),
        do="check each --model-arg" if arguments else "",
    )


def unknown_model(source: str, name: str, known: Iterable[str]) -> SourceError:
    """The error for a name that its library does not have, with the nearest that it has: first those that begin so."""
    names = list(known)
    longer = sorted(other for other in names if name and other.startswith(name))
    near = list(dict.fromkeys([*longer, *difflib.get_close_matches(name, names, n=5, cutoff=0.5)]))[:5]
    kind = source.partition("/")[0]
    return SourceError(
        f"{kind} has no model {name!r}",
        why=f"the nearest names are {', '.join(near)}" if near else "no name is near it",
        do=f"for example {kind}/{near[0]}" if near else "",
    )


@contextmanager
def hugging_face_hub() -> Iterator[None]:
    """Asks the hub once, briefly, whether it answers; where it does not, only its local cache is used inside.

    Its own client tries again for most of a minute for every file.
    """
    hub = need("huggingface_hub", purpose="pretrained weights")
    before = hub.constants.HF_HUB_OFFLINE
    hub.constants.HF_HUB_OFFLINE = before or not _answers(hub)
    try:
        yield
    finally:
        hub.constants.HF_HUB_OFFLINE = before


def _answers(hub: Any) -> bool:
    try:
        hub.utils.get_session().head(hub.constants.ENDPOINT, timeout=REACH_TIMEOUT_S)
    except Exception:
        return False
    return True
