"""Fresh models of images and texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdhub.errors import UntrustedError, UsageError
from kdhub.student import BuildContext
from kdhub_tasks.language.students import tokenizer_for
from kdhub_tasks.vision_language.rows import MARKER

if TYPE_CHECKING:
    from kdhub_tasks.vision_language.model import VisionLanguage


def from_config(given: Mapping[str, Any], context: BuildContext) -> VisionLanguage:
    """`config:{"model_type": "llava", "vision_config": {...}, "text_config": {...}}`: a fresh network of any
    architecture that the library has, with the teacher's tokenizer and processor; without a teacher with a tokenizer
    of bytes.

    One of the family LLaVA has a processor of its own, by the image and patch sizes of its `vision_config`.

    Raises:
        UsageError: it is not the configuration of a model of images and texts, or nothing says how it sees images.
        UntrustedError: it names code of its own.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, set_seed

    from kdhub_tasks.vision_language.model import VisionLanguage
    from kdhub_tasks.vision_language.reader import Reader

    what = f"student config:{given.get('model_type')}"
    text, vision = dict(given.get("text_config") or {}), given.get("vision_config") or {}
    if any("auto_map" in one for one in (given, text, vision)):
        raise UntrustedError(f"{what} names code of its own (auto_map), which kdhub does not run")
    teacher = context.teacher
    tokenizer, classes = tokenizer_for(context, text.get("max_position_embeddings") or 1024)
    if teacher is None:
        tokenizer.add_special_tokens({"additional_special_tokens": [MARKER]})
        classes = len(tokenizer)
    token = teacher.reader.token if teacher is not None else tokenizer.convert_tokens_to_ids(MARKER)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    text |= {**special, "vocab_size": max(classes, int(text.get("vocab_size") or 0))}
    values = {"image_token_id": token, "image_token_index": token, **given, "text_config": text}
    set_seed(context.seed)
    try:
        made = AutoConfig.for_model(values.pop("model_type"), **values)
        network = AutoModelForImageTextToText.from_config(made)
    except KeyError:
        raise UsageError(f"student config needs a model_type, such as llava: {str(given)[:80]}") from None
    except Exception as error:  # whatever the library says of sizes that do not fit
        raise UsageError(f"{what} is not a model of images and texts: {str(error).splitlines()[0]}") from error
    if made.model_type == "llava":
        reader = Reader.of(_llava(made, tokenizer), made)
    elif teacher is not None:
        reader = teacher.reader
    else:
        raise UsageError(f"{what} needs a teacher of its family, which says how images are seen, or the family llava")
    if own := getattr(teacher, "own_settings", None):
        network.generation_config.eos_token_id = sorted(own.ends) or None
    how = {"how": f"fresh {made.model_type} from a configuration"}
    return VisionLanguage(network.float(), tokenizer, reader, how)


def _llava(config: Any, tokenizer: Any) -> Any:
    """A processor for a LLaVA: pictures of the size of its vision part, values of -1 to 1."""
    from transformers import LlavaProcessor, SiglipImageProcessorPil

    size, classes = config.vision_config.image_size, config.vision_config.model_type.startswith("clip")
    images = SiglipImageProcessorPil(
        size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_resize=True
    )
    return LlavaProcessor(
        images, tokenizer, patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(classes), image_token=tokenizer.convert_ids_to_tokens(config.image_token_id),
    )  # fmt: skip
