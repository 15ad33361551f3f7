"""A model with erasures in it, and a suite's images that it draws into a gallery."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import InputError
from ._settings import shown
from .gallery import Gallery, MadeBy, Used
from .pipelines.loading import Loading
from .processes import appears, processes
from .prompts import Prompt, Suite
from .prompts.emoji import world
from .records import Model
from .store import OFF, Store

if TYPE_CHECKING:
    import torch

    from .attacks.attacked import Attacked
    from .pipelines.erasure import Erasure

Progress = Callable[[str, int, int], None]

PLAIN = Loading()
"""A model as it is loaded where nobody says how."""


@dataclass(frozen=True)
class Source:
    """A model that images are drawn with, loaded.

    Attributes:
        pipe: The pipeline, left as it was after each drawing.
        name: What it was called or where it lies: a label.
        loading: How it was loaded.
        ours: Whether it was loaded here. Of a pipeline that was given nobody can tell what its
            code does beside its weights, as a hook, so its images are not shared.
        moved: Where offloading moves its weights to; None where nobody wants it.
    """

    pipe: Any
    name: str
    loading: Loading = PLAIN
    ours: bool = False
    moved: "torch.device | None" = None

    @classmethod
    def of(cls, model: Any, loading: Loading | None = None) -> "Source":
        """A model, loaded where it is not one already; not offloaded yet.

        Raises:
            InputError: There is none, it is loaded and something is said of how to, or it has a
                safety checker.
        """
        from .pipelines import load_pipeline
        from .pipelines.load import accelerator

        if isinstance(model, Source):
            return model
        name, how = name_of(model), how_to_load(model, loading)
        if not isinstance(model, (str, Path)):
            _check_unchecked(model)
            return cls(model, name)
        moved = accelerator(how.device) if how.offload else None
        return cls(load_pipeline(model, **how.drawing, **unchecked(name)), name, how, True, moved)

    def of_another(self, other: Any) -> "Source":
        """What somebody made of this model, to be drawn with: see ``pipelines.foreign``.

        Raises:
            InputError: It cannot be read, does not fit this model, or has a safety checker.
        """
        from .pipelines.foreign import against

        name, how = name_of(other), self.loading.drawing
        named = isinstance(other, (str, Path))
        loading = {part: how[part] for part in ("dtype", "device")} | unchecked(name)
        pipe = against(self.pipe, other, config=how["config"], **loading)
        _check_unchecked(pipe)
        # What a pipeline that was given shares with it is the giver's
        return Source(pipe, name, self.loading, self.ours and named, self.moved)

    @cached_property
    def known(self) -> Model:
        """By what its images are known."""
        from .pipelines.identity import model_of

        return model_of(self.pipe, " + ".join((self.name, *self.loading.lora)))

    def generation(
        self, guidance: float | None, steps: int | None
    ) -> Mapping[str, float | int | None]:
        """The settings for generating: what is asked for, or else the pipeline's own.

        Raises:
            InputError: The pipeline has no number of steps of its own, and none is asked for.
        """
        from .pipelines.generation import own

        if self.name == "emoji":
            known = world().generation
            guidance = known["guidance_scale"] if guidance is None else guidance
            steps = known["num_inference_steps"] if steps is None else steps
        if guidance is None or steps is None:
            mine = own(self.pipe)
            guidance = mine.guidance if guidance is None else guidance
            steps = mine.steps if steps is None else steps
        return {"guidance": guidance, "steps": steps}

    def made_by(
        self,
        erasures: "Sequence[tuple[Erasure, float]]",
        suite: Suite,
        settings: Mapping[str, Any],
    ) -> MadeBy:
        """What makes a suite's images.

        Args:
            settings: ``guidance``, ``steps`` and ``batch_size``.

        Raises:
            InputError: A prompt asks for more steps than there are.
        """
        from .pipelines import cut

        self._check_steps(suite, settings["steps"])
        return MadeBy(
            model=self.known,
            erasures=tuple(_used(e, weight) for e, weight in erasures),
            versions={package: version(package) for package in ("unsee", "torch", "diffusers")},
            suite={"name": suite.name, **suite.source} if suite.source else {},
            cut=tuple(cut(self.pipe, suite.prompts)),
            # Not its number, which is another in each of several processes
            device=self.pipe._execution_device.type,
            **settings,
        )

    def draw(
        self,
        erasures: "Sequence[tuple[Erasure, float]]",
        suite: Suite,
        out: Path,
        settings: Mapping[str, Any],
        what: str,
        store: Store | None,
        progress: Progress,
        *,
        attacked: "Attacked | None" = None,
    ) -> Gallery:
        """Makes a suite's images, or those that are still missing.

        Args:
            settings: As ``made_by``.
            what: Whose images they are, in words.
            store: What images are shared through, if they are ours to share.
            attacked: An attack on it all; the suite is attacked already.
        """
        from .pipelines import generate

        # The model is known by its weights as they are without the erasures
        made_by = self.made_by(erasures, suite, settings)
        if attacked is not None and attacked.changes_model:
            made_by = dataclasses.replace(made_by, attack=attacked.sha256)
        with self._stacked(erasures, attacked):
            gallery = _started(out, made_by, suite.prompts)
            made = 0
            shared = store if self.ours else None
            for batch in generate(self.pipe, gallery, store=shared, **settings):
                made += batch
                progress(f"images of the {what}", made, len(gallery))
        return gallery

    @contextmanager
    def _stacked(
        self, erasures: "Sequence[tuple[Erasure, float]]", attacked: "Attacked | None" = None
    ) -> Iterator[None]:
        """With erasures in it, and its weights offloaded behind them if that is wanted."""
        from .pipelines.load import offloaded

        with ExitStack() as stack:
            for erasure, weight in erasures:
                stack.enter_context(erasure.applied(self.pipe, weight))
            if attacked is not None:
                stack.enter_context(attacked.applied(self.pipe))
            stack.enter_context(offloaded(self.pipe, self.loading.offload, self.moved))
            yield

    def interfering(self, erasures: "Sequence[tuple[Erasure, float]]") -> list[str]:
        """What several erasures of weights give reason to doubt together, a line each."""
        from .erasers.effect import together, weakened
        from .pipelines.parts import described

        edits = [(erasure, weight) for erasure, weight in erasures if erasure.tensors]
        return weakened(together(described(self.pipe), edits)) if edits[1:] else []

    def pictured(self) -> list[str]:
        """What an image is, where the pipeline draws something else."""
        from .pipelines.generation import pictured

        return [line] if (line := pictured(self.pipe)) else []

    def _check_steps(self, suite: Suite, steps: int) -> None:
        """Refuses more denoising steps than the model's scheduler has times to choose from.

        Raises:
            InputError: A prompt, or the whole gallery, asks for more.
        """
        most = self.pipe.scheduler.config.get("num_train_timesteps")
        wanted = max(steps if p.steps is None else p.steps for p in suite.prompts)
        if most is not None and wanted > most:
            raise InputError(
                f"steps is {wanted}; it must be at most {most}, the times that the model's "
                f"{type(self.pipe.scheduler).__name__} knows."
            )


def _started(out: Path, made_by: MadeBy, prompts: Sequence[Prompt]) -> Gallery:
    """The gallery that the first process starts, and which the others must see as it does.

    Raises:
        InputError: As ``Gallery.start``; or a process does not see it, or has another model.
    """
    several = processes()

    def join() -> Gallery:
        if not appears(out / "gallery.json"):
            raise InputError(
                f"Process {several.rank} does not see {out}, which process 0 has made: name a "
                "folder that all machines share."
            )
        return Gallery.join(out, made_by, prompts)

    started = several.first(lambda: Gallery.start(out, made_by, prompts))
    return several.all(lambda: started or join())


def loaded_erasures(
    erasures: "str | Path | Erasure | Sequence[str | Path | Erasure | tuple[Any, Any]]",
) -> "list[tuple[Erasure, float]]":
    """Erasures with their weights, read where they are files.

    Raises:
        InputError: One cannot be read, or is there twice.
    """
    from .pipelines.erasure import Erasure, weighted

    some = [erasures] if isinstance(erasures, (str, Path, Erasure)) else erasures
    found = [weighted(one) for one in some]
    known: set[str] = set()
    for erasure, _ in found:
        if erasure.sha256 in known:
            raise InputError(
                f"The erasure {erasure.name!r} is there twice: name it once, with the weight that "
                "you mean (FILE:2)."
            )
        known.add(erasure.sha256)
    return found


def open_store(out: Path) -> Store | None:
    """What images are shared through, which then knows of the folder; the first process's affair.

    Warns:
        UserWarning: The store cannot be written to, so that nothing is shared.
    """
    store = Store.of_user()
    if not processes().is_first:  # which does it for all
        return None
    if store is None or store.note(out, datetime.now(timezone.utc).isoformat(timespec="seconds")):
        return store
    warnings.warn(
        f"The store {store.path} cannot be written to, so these images are not shared with other "
        f"runs. UNSEE_STORE names another folder, or {OFF}.",
        stacklevel=4,  # past ``checked``
    )
    return None


def cut_ends(gallery: Gallery) -> list[str]:
    """A line on the prompts that the tokenizer cuts, if there are any."""
    ids = gallery.made_by.cut if gallery.made_by else ()
    if not ids:
        return []
    more = f" and {len(ids) - 10} more, all of them in gallery.json" if len(ids) > 10 else ""
    return [
        f"The tokenizer cuts {len(ids)} of {len(gallery)} prompts, whose ends the model "
        f"never read: {', '.join(ids[:10])}{more}."
    ]


def name_of(model: Any) -> str:
    """What a model is called.

    Raises:
        InputError: It is no model.
    """
    if not isinstance(model, (str, Path)) and not hasattr(model, "name_or_path"):
        raise InputError(
            f"The model is {shown(model)}; it must be a name, a folder or a diffusers pipeline."
        )
    return str(model if isinstance(model, (str, Path)) else model.name_or_path)


def how_to_load(model: Any, loading: Loading | None) -> Loading:
    """How a model is loaded.

    Raises:
        InputError: Something is said, and it is loaded already.
    """
    if loading not in (None, PLAIN) and not isinstance(model, (str, Path)):
        raise InputError(
            "loading says how a model is loaded, and a pipeline was given: leave it out."
        )
    return loading or PLAIN


def unchecked(model: str) -> dict[str, Any]:
    """How a model is loaded without a safety checker."""
    # It would paint images black, and black images show no concept.
    return {} if model == "emoji" else {"safety_checker": None, "requires_safety_checker": False}


def peak_bytes() -> dict[str, int]:
    """The most memory that this process has held so far, and of the GPU, if it has one."""
    import sys

    import torch

    found = {}
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        found["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.max_memory_allocated()
    return found


def _check_unchecked(pipe: Any) -> None:
    if getattr(pipe, "safety_checker", None) is not None:
        raise InputError(
            "This pipeline has a safety checker, which paints images black, and black images show "
            "no concept: set its safety_checker to None."
        )


def _used(erasure: "Erasure", weight: float) -> Used:
    return Used(
        name=erasure.name,
        method=erasure.record.method,
        settings=erasure.record.settings,
        sha256=erasure.sha256,
        bytes=len(erasure.bytes),
        seconds=erasure.measured.seconds,
        peak_memory=erasure.measured.peak_memory,
        weight=weight,
        layers={part: len(one.layers) for part, one in erasure.record.base.components.items()},
    )
