"""Images and texts to texts, declared. No torch, no transformers here."""

from __future__ import annotations

from kdhub import DatasetSpec, FolderFormat, TaskSpec
from kdhub_tasks.language.spec import ANSWERED, COLUMNS, SHOWN

HERE = "kdhub_tasks.vision_language"
NAME = "image-text-to-text"
READ = {form: COLUMNS[form] for form in (*ANSWERED, "prompts")}
"""Form of rows -> the columns that it needs beside those of images (`SHOWN`)."""

TASKS = (
    TaskSpec(
        name=NAME,
        target=f"{HERE}.task:ImageTextToText",
        traits=("classes", "labels", "words", "next-token", "layers"),
        signals=("logits", "features"),
        writes=("text",),
        formats=(FolderFormat(heads=("ForConditionalGeneration", "ForImageTextToText"), keys=("vision_config",)),),
        reads=tuple((*columns, shown) for columns in READ.values() for shown in SHOWN),
        summary="questions about images to texts",
    ),
)

DATASETS = (
    DatasetSpec(
        name="digit-questions", target=f"{HERE}.data:digit_questions", argument="which,sum,larger,count",
        example="which,sum", splits=("train", "validation", "test"),
        summary="questions about pictures of handwritten digits, with one right answer each",
    ),
)  # fmt: skip
