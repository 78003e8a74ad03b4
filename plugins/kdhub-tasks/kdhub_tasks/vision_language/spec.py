"""Images and texts to texts, declared. No torch, no transformers here."""

from __future__ import annotations

from kdhub import DatasetSpec, FolderFormat, StudentSpec, TaskSpec
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

STUDENTS = (
    StudentSpec(
        name="config", target="kdhub_tasks.language.students:config", tasks=(TASKS[0].name,),
        summary="a fresh model of a transformers configuration, with the teacher's tokenizer and processor",
        argument="FILE or {...}",
        example='{"model_type": "llava", "vision_config": {"model_type": "siglip_vision_model", "image_size": 8, '
        '"patch_size": 4, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}, '
        '"text_config": {"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, '
        '"num_attention_heads": 2, "max_position_embeddings": 1024}}',
    ),
)  # fmt: skip

DATASETS = (
    DatasetSpec(
        name="digit-questions", target=f"{HERE}.data:digit_questions", argument="which,sum,larger,count",
        example="which,sum", splits=("train", "validation", "test"),
        summary="questions about pictures of handwritten digits, with one right answer each",
    ),
)  # fmt: skip
