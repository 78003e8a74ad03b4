"""What a model's own `generation_config.json` says of its texts: what ends them, which tokens it favours or forbids.

How a text is sampled (temperature, top_p, length) is a choice of `Generation`. The rest is the model's own and applies
to whatever it writes as teacher or when it is evaluated. Samples that a method trains on are drawn from the plain
distribution, of which its loss speaks; only their ends are the model's own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from kdhub_tasks.language import chat_template

logger = logging.getLogger("kdhub")

HONOURED = ("sequence_bias", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "min_length",
            "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens",
            "begin_suppress_tokens")  # fmt: skip
"""Settings that change the scores of the next token, in the library's order."""
OTHERS = ("num_beams", "penalty_alpha", "exponential_decay_length_penalty", "guidance_scale", "watermarking_config",
          "dola_layers", "diversity_penalty", "constraints", "force_words_ids", "token_healing",
          "encoder_repetition_penalty", "encoder_no_repeat_ngram_size")  # fmt: skip
"""Settings that change texts and are not supported."""
NEUTRAL = {"repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "num_beams": 1, "guidance_scale": 1.0}
"""Values that change nothing, besides none, 0 and an empty list."""

Scores = Callable[[Tensor, Tensor], Tensor]
"""(token ids so far (1, n), scores of the next token (1, tokens)) -> other scores."""


@dataclass
class OwnSettings:
    """The settings of one model.

    Args:
        config: its `transformers.GenerationConfig`, or None.
        tokenizer: whose end token and chat template end texts as well.
    """

    config: Any
    tokenizer: Any

    @property
    def listed(self) -> list[int]:
        """The end tokens that the configuration lists."""
        given = getattr(self.config, "eos_token_id", None)
        given = given if isinstance(given, (list, tuple)) else [given]
        return [n for n in given if n is not None and n >= 0]  # -1 is some configurations' word for none

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end a text: all that the configuration lists, the tokenizer's, and that which ends an answer in
        its chat template."""
        more = (self.tokenizer.eos_token_id, chat_template.turn_end(self.tokenizer))
        return frozenset([*self.listed, *(n for n in more if n is not None)])

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether a text of these tokens ends here: by a token, or by one of the model's `stop_strings`."""
        return bool(ids) and (ids[-1] in self.ends or any(s in self.tokenizer.decode(ids) for s in self._strings))

    @cached_property
    def _strings(self) -> tuple[str, ...]:
        given = self._value("stop_strings") or ()
        return (given,) if isinstance(given, str) else tuple(given)

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text, without the one that ends it."""
        ids = list(ids[:-1] if ids and ids[-1] in self.ends else ids)
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    @property
    def beyond_ends(self) -> dict[str, Any]:
        """Supported settings that change scores, and `stop_strings`."""
        return {name: value for name in (*HONOURED, "stop_strings") if (value := self._value(name)) is not None}

    @property
    def marks(self) -> dict[str, Any]:
        """What stored texts depend on, as JSON values: empty where the tokenizer's end token alone ends a text."""
        more = {name: str(value) for name, value in self.beyond_ends.items()}
        ends = sorted(self.ends - {self.tokenizer.eos_token_id})
        return ({"ends": ends} if ends else {}) | more

    def scores(self, prompt: int, room: int) -> list[Scores]:
        """What changes the scores of the next token of an answer.

        Args:
            prompt: tokens of the prompt; room: the most tokens of the answer.
        """
        import transformers as library

        ends, given = sorted(self.ends), self.beyond_ends
        made = {
            "sequence_bias": lambda v: library.SequenceBiasLogitsProcessor(v),
            "repetition_penalty": lambda v: library.RepetitionPenaltyLogitsProcessor(v),
            "no_repeat_ngram_size": lambda v: library.NoRepeatNGramLogitsProcessor(v),
            "bad_words_ids": lambda v: library.NoBadWordsLogitsProcessor(v, ends),
            "min_length": lambda v: library.MinLengthLogitsProcessor(v, ends),
            "min_new_tokens": lambda v: library.MinNewTokensLengthLogitsProcessor(prompt, v, ends),
            "forced_bos_token_id": lambda v: library.ForcedBOSTokenLogitsProcessor(v),
            "forced_eos_token_id": lambda v: library.ForcedEOSTokenLogitsProcessor(prompt + room, v),
            "suppress_tokens": lambda v: library.SuppressTokensLogitsProcessor(v),
            "begin_suppress_tokens": lambda v: library.SuppressTokensAtBeginLogitsProcessor(v, prompt),
        }
        return [made[name](given[name]) for name in HONOURED if name in given]

    def tell(self, who: str, trained: bool) -> None:
        """Say which settings do not apply.

        Args:
            trained: whether the texts are samples that a method trains on.
        """
        left = list(self._set(HONOURED if trained else ())) + list(self._set(OTHERS))
        if left:
            why = "samples to train on are drawn without them" if trained else "they are not supported"
            logger.warning("generation settings of %s that do not apply: %s; %s", who, ", ".join(left), why)

    def _set(self, names: Sequence[str]) -> Iterator[str]:
        for name in names:
            if (value := self._value(name)) is not None:
                yield f"{name}={value}"

    def _value(self, name: str) -> Any:
        value = getattr(self.config, name, None)
        nothing = (None, [], {}, "") if name.endswith("_id") else (None, [], {}, "", 0, NEUTRAL.get(name))
        return None if value in nothing else value
