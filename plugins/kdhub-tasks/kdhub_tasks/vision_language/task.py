"""The task image-text-to-text: questions about images to texts, on the ground of language."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from kdhub.errors import DataError
from kdhub.rows import Prepare
from kdhub_tasks.classification.images import as_bytes
from kdhub_tasks.language import lora
from kdhub_tasks.language.outputs import require_same_tokens
from kdhub_tasks.language.spec import SHOWN
from kdhub_tasks.language.task import CausalLanguage
from kdhub_tasks.vision_language.rows import ImageEncoding
from kdhub_tasks.vision_language.spec import NAME, READ
from kdhub_tasks.vision_language.teachers import VlmTeacher

if TYPE_CHECKING:
    import datasets

    from kdhub.data.dataset import Data
    from kdhub.student import BuildContext
    from kdhub_tasks.vision_language.model import VisionLanguage


class ImageTextToText(CausalLanguage):
    """Rows of `prompt` and `response`, and the other forms of language with an answer, with an `image` or several
    `images` (see `rows`). Labels are the answer's tokens and the end.

    Teacher and student share a vocabulary; each sees pixels by its own processor (see `reader`).
    """

    name = NAME
    column = "prompt"
    pipeline_tag = NAME
    Teacher = VlmTeacher

    class StudentOptions(lora.StudentOptions):
        packing: Literal[False] = Field(False, description="rows with images are not packed into one sequence")
        freeze: list[Literal["vision", "projector", "language"]] = Field(
            default_factory=list, description="parts of the network that are not trained"
        )

    # -- rows -------------------------------------------------------------------------------------------------

    def _columns(self, data: Data, split: str) -> datasets.Dataset:
        table = data.split(split)
        have = {*table.column_names}
        form = next((form for form, needed in READ.items() if have.issuperset(needed)), None)
        if form is None:
            raise DataError(
                f"{data.name}, split {split!r}, needs 'prompt' and 'response', or 'messages', beside 'image' or "
                f"'images'; it has {', '.join(table.column_names)}",
                hint="map its columns: columns: {prompt: THEIRS, response: THEIRS, image: THEIRS}",
            )
        kept = {*READ[form], *SHOWN, "sample", "loss_on"}
        table = table.select_columns([name for name in table.column_names if name in kept])
        return as_bytes(table, "image", data, split) if "image" in have else table

    def preparer(self, student: Any, teacher: Any, **settings: Any) -> Prepare:
        """As of language; every model's limit counts the tokens that stand for images with it."""
        prompts = settings.get("prompts")
        models = [model for model in ((teacher,) if prompts and teacher else (student, teacher)) if model is not None]
        if len(models) > 1 and student.vocabulary != teacher.vocabulary:
            require_same_tokens(student.tokenizer, teacher.tokenizer)
        most = settings.get("max_length")
        limits = [min((n for n in (model.max_length, most) if n), default=None) for model in models]
        return ImageEncoding(
            models[0].tokenizer,
            None if None in limits else min(limits),
            None,
            prompts,
            bool(settings.get("groups")),
            models[1].tokenizer if len(models) > 1 else None,
            settings.get("prefix", ""),
            [model.reader for model in models],
            limits,
        )

    # -- models -----------------------------------------------------------------------------------------------

    def load(self, folder: Path, *, name: str | None = None) -> VisionLanguage:
        from kdhub_tasks.vision_language import model

        return model.load(folder, name=name)

    def from_config(self, given: Mapping[str, Any], context: BuildContext) -> VisionLanguage:
        from kdhub_tasks.vision_language import students

        return students.from_config(given, context)

    def configure(self, student: VisionLanguage, context: BuildContext) -> VisionLanguage:
        """Frozen parts, and an adapter, which leaves all else frozen."""
        student = super().configure(student, context)
        student.freeze(context.options.get("freeze") or ())
        return student

    def tiny_recipe(self, folder: Path) -> dict[str, Any]:
        from kdhub_tasks.vision_language import tiny

        return tiny.recipe(folder)
