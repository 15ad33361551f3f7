"""unsee makes a text-to-image diffusion model forget a concept, and proves how well it forgot."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

# erasers as well: its methods name their guides, by which a file of theirs is put on.
from . import erasers as erasers
from ._errors import InputError
from .gallery import Gallery
from .prompts import Concept, Prompt, Suite

if TYPE_CHECKING:
    from .audits import attack as attack
    from .audits import audit as audit
    from .audits import audit_all as audit_all
    from .audits import audit_each as audit_each
    from .audits import audit_images as audit_images
    from .audits import compare as compare
    from .eval.report import Report as Report
    from .flow import erase as erase
    from .flow import generate_gallery as generate_gallery
    from .flow import interference as interference
    from .flow import merge as merge
    from .flow import push as push
    from .flow import score as score
    from .pipelines.erasure import Erasure as Erasure
    from .pipelines.export import export as export
    from .pipelines.load import load_pipeline as load_pipeline
    from .pipelines.loading import Loading as Loading
    from .pipelines.watch import Active as Active
    from .pipelines.watch import active as active
    from .pipelines.watch import remove as remove
    from .plans import plan_audit as plan_audit
    from .plans import plan_each as plan_each
    from .verifying import verify as verify

__version__ = version("unsee")

_EXPORTS = {
    "Active": ".pipelines.watch",
    "Erasure": ".pipelines.erasure",
    "Loading": ".pipelines.loading",
    "Report": ".eval.report",
    "active": ".pipelines.watch",
    "attack": ".audits",
    "audit": ".audits",
    "audit_each": ".audits",
    "audit_images": ".audits",
    "audit_all": ".audits",
    "plan_each": ".plans",
    "compare": ".audits",
    "plan_audit": ".plans",
    "erase": ".flow",
    "export": ".pipelines.export",
    "generate_gallery": ".flow",
    "interference": ".flow",
    "merge": ".flow",
    "load_pipeline": ".pipelines.load",
    "push": ".flow",
    "remove": ".pipelines.watch",
    "score": ".flow",
    "verify": ".verifying",
}

__all__ = [
    "Active",
    "Concept",
    "Erasure",
    "Gallery",
    "InputError",
    "Loading",
    "Prompt",
    "Report",
    "Suite",
    "active",
    "attack",
    "audit",
    "audit_all",
    "audit_each",
    "audit_images",
    "compare",
    "erase",
    "export",
    "generate_gallery",
    "interference",
    "load_pipeline",
    "merge",
    "plan_audit",
    "plan_each",
    "push",
    "remove",
    "score",
    "verify",
]


def __getattr__(name: str) -> object:
    # Lazy: these import torch, and `unsee --help` must not.
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name], __name__), name)
