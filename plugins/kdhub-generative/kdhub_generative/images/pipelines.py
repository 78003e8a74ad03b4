"""Pipelines of the diffusers library as models that draw: their folders are opened and written as they are.

    model_index.json    unet/    scheduler/        and for prompts and codes of pictures text_encoder/ tokenizer/ vae/
    drawing.json        what the library has no place for: classes, whether that of nothing is known, calls, guidance

The process is the scheduler's `alphas_cumprod`, what the network gives its `prediction_type`. A one-call model needs
nothing else: its scheduler has a single step, with the constants that the network is read at, so that the library's own
pipeline draws with `num_inference_steps=1` what kdhub draws.

Pictures in several steps begin at the last step and go down in steps of equal length; the library's own `leading`
spacing begins a little earlier, so its pictures of the same noise are not the same to the last bit.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdhub.errors import CompatibilityError, UntrustedError, UsageError
from kdhub.hub.trust import check_model_folder
from kdhub.plain_json import read_json
from kdhub.student import BuildContext, sizes
from kdhub_generative.images.model import STEPS, ImageModel, Predictor
from kdhub_generative.images.positions import placed_codes
from kdhub_generative.images.process import Process
from kdhub_generative.images.students import FreshOptions, of_rows

GIVES = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
"""`prediction_type` of a scheduler -> what its network gives."""
SAID = {gives: said for said, gives in GIVES.items()}
PARTS = {
    "unet": ("UNet2DModel", "UNet2DConditionModel"),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
"""Parts of a pipeline and the classes that are opened."""
GUIDANCE_WIDTH = 256
TRAINING_STEPS = 1000


class Unet2d(nn.Module):
    """A U-Net of the library as `Predictor` calls it: conditions are classes, or texts that were encoded.

    Attributes:
        text: encodes conditions that are tokens, where it is trained as well; else they come encoded.
        grid: cells a side of the position codes that are added to what the first convolution gives, within the box of
            each row (`boxes`); None: none are.
    """

    def __init__(self, unet: nn.Module, grid: int | None = None):
        super().__init__()
        self.unet, self.grid, self.text = unet, grid, None
        self.boxes: Tensor | None = None
        unet.conv_in.register_forward_hook(self._placed)

    def _placed(self, convolution: nn.Module, given: Any, made: Tensor) -> Tensor:
        return made if self.grid is None else made + placed_codes(made, self.grid, self.boxes)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None, guidance: Tensor | None) -> Tensor:
        if self.text is not None and condition is not None and not condition.is_floating_point():
            condition = self.text(condition).last_hidden_state
        if condition is None or not condition.is_floating_point():
            given = self.unet(x, t, class_labels=condition).sample
        else:
            told = None if guidance is None else guidance_waves(guidance, self.unet.config.time_cond_proj_dim)
            given = self.unet(x, t, encoder_hidden_states=condition.to(x.dtype), timestep_cond=told).sample
        return given[:, : x.shape[1]]  # some also give a variance


def guidance_waves(guidance: Tensor, width: int) -> Tensor:
    """As the library's pipelines tell such a network its guidance: sines and cosines of w - 1."""
    half = width // 2
    rates = torch.exp(-np.log(10000.0) / (half - 1) * torch.arange(half, device=guidance.device))
    angles = 1000 * (guidance.float() - 1)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


class PipelineModel(ImageModel):
    """A pipeline's network, with what stands around it.

    Args:
        unet, scheduler: of the library.
        parts: further ones by name: `vae`, `text_encoder`, `tokenizer`.
        known: what `drawing.json` says.
    """

    def __init__(
        self, unet: nn.Module, scheduler: Any, parts: Mapping[str, Any] | None = None,
        known: Mapping[str, Any] | None = None, start: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        process, prediction = process_of(scheduler)
        self.parts, self.scheduler, self._texts = dict(parts or {}), scheduler, {}
        for part in self.parts.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        size, known = unet.config.sample_size, dict(known or {})
        size = (size, size) if isinstance(size, int) else tuple(size)
        one_call = len(process.kept) == 2
        many = getattr(unet.config, "num_class_embeds", None)
        if many and "classes" not in known:
            known["classes"] = [str(n) for n in range(many)]
        super().__init__(
            Predictor(Unet2d(unet, known.get("grid")), process, prediction, 1.0 if one_call else None),
            (unet.config.in_channels, *size), known.get("classes"), known.get("has_null", False),
            known.get("steps", STEPS), known.get("guidance", 1.0), start,
        )  # fmt: skip
        self.prompts = "text_encoder" in self.parts
        self.has_null |= self.prompts

    @property
    def unet(self) -> nn.Module:
        return self.module.network.unet

    @property
    def pixels(self) -> tuple[int, ...]:
        if "vae" not in self.parts:
            return self.shape
        config = self.parts["vae"].config
        return (config.out_channels, *(n * 2 ** (len(config.block_out_channels) - 1) for n in self.shape[1:]))

    def conditions(self, names: Sequence[str | None]) -> dict[str, Tensor]:
        if not self.prompts:
            return super().conditions(names)
        read = self.text if self.module.network.text is None else self.tokens
        null = read("")
        found = [null if name is None else read(name) for name in names]
        return {"condition": torch.stack(found), "null": null.expand(len(found), *null.shape)}

    def text(self, prompt: str) -> Tensor:
        """A prompt as the network reads it, (tokens, width); encoded once."""
        if prompt not in self._texts:
            encoder, ids = self.parts["text_encoder"], self.tokens(prompt)[None]
            with torch.no_grad():
                self._texts[prompt] = encoder(ids.to(encoder.device)).last_hidden_state[0].float().cpu()
        return self._texts[prompt]

    def tokens(self, prompt: str) -> Tensor:
        """(tokens,) int64, padded."""
        tokenizer, config = self.parts["tokenizer"], self.parts["text_encoder"].config
        length = min(tokenizer.model_max_length, config.max_position_embeddings)
        read = tokenizer(prompt, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return read["input_ids"][0]

    def coded(self, x: Tensor) -> Tensor:
        if "vae" not in self.parts:
            return x
        vae = self.parts["vae"]
        with torch.no_grad():
            return vae.encode(x.to(vae.device)).latent_dist.mode().to(x.device) * vae.config.scaling_factor

    def decode(self, x0: Tensor) -> Tensor:
        if "vae" not in self.parts:
            return x0
        vae = self.parts["vae"].to(x0.device)
        return vae.decode(x0 / vae.config.scaling_factor).sample

    # -- guides -----------------------------------------------------------------------------------------------

    @property
    def root(self) -> nn.Module:
        return self.unet

    def copied(self) -> PipelineModel:
        own = {"text_encoder": copy.deepcopy(self.parts["text_encoder"])} if self.prompts else {}
        known = {"classes": self.classes, "has_null": self.has_null, "steps": self.steps, "grid": self.grid}
        unet = type(self.unet).from_config(self.unet.config)
        unet.load_state_dict(self.unet.state_dict())
        return PipelineModel(unet, self.scheduler, {**self.parts, **own}, known)

    def train_text(self) -> None:
        if self.prompts:
            self.module.network.text = self.parts["text_encoder"].requires_grad_(True)

    @property
    def grid(self) -> int | None:
        return self.module.network.grid

    def place(self, grid: int) -> None:
        self.module.network.grid = grid

    @property
    def stride(self) -> int:
        return (self.pixels[1] // self.shape[1]) * 2 ** (len(self.unet.config.block_out_channels) - 1)

    # -- one call ---------------------------------------------------------------------------------------------

    def as_one_call(self, readout: float, fresh: bool = False) -> PipelineModel:
        unet = type(self.unet).from_config(self.unet.config) if fresh else copy.deepcopy(self.unet)
        prediction = "x0" if self.module.prediction == "epsilon" else self.module.prediction
        if prediction != self.module.prediction:
            nn.init.zeros_(unet.conv_out.weight)
            nn.init.zeros_(unet.conv_out.bias)
        known = {"classes": self.classes, "has_null": self.has_null}
        made = PipelineModel(unet, self.scheduler, self.parts, known)
        made.module.prediction, made.module.readout = prediction, readout
        return made

    def take_guidance(self, low: float, high: float) -> None:
        if not self.prompts:
            super().take_guidance(low, high)
        embedding = self.unet.time_embedding
        embedding.cond_proj = nn.Linear(GUIDANCE_WIDTH, embedding.linear_1.in_features, bias=False)
        nn.init.zeros_(embedding.cond_proj.weight)
        embedding.cond_proj.to(self.unet.device)
        self.unet.register_to_config(time_cond_proj_dim=GUIDANCE_WIDTH)
        self.guidance = (low, high)

    def finalise(self) -> None:
        """Of a one-call model: the process is the one step whose constants it is read at, as it is saved."""
        if self.one_call and len(self.process.kept) > 2:
            (alpha,), _ = self.process.at(torch.tensor([self.module.readout]))
            self.module.process, self.module.readout = Process([float(alpha) ** 2]), 1.0
        if self.module.network.text is not None:  # it was trained, and is a part of its own from here on
            self.module.network.text, self._texts = None, {}
            self.parts["text_encoder"].requires_grad_(False)

    # -- folders ----------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        from diffusers import DDIMScheduler, __version__

        self.finalise()
        scheduler = self.scheduler
        if self.one_call:
            gives = SAID[self.module.prediction]
            beta = 1 - float(self.process.kept[1])
            scheduler = DDIMScheduler(
                num_train_timesteps=1, trained_betas=[beta], prediction_type=gives, clip_sample=False,
                timestep_spacing="trailing", steps_offset=1,  # as Stable Diffusion's pipeline has it in any case
            )  # fmt: skip
        self.unet.save_pretrained(folder / "unet")
        scheduler.save_pretrained(folder / "scheduler")
        pipeline = "StableDiffusionPipeline" if self.prompts else "DDIMPipeline"
        index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": __version__}
        index |= {"unet": ["diffusers", type(self.unet).__name__], "scheduler": ["diffusers", type(scheduler).__name__]}
        for name, part in self.parts.items():
            part.save_pretrained(folder / name)
            index[name] = ["diffusers" if name == "vae" else "transformers", type(part).__name__]
        if self.prompts:
            index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
            index["requires_safety_checker"] = False
        (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
        known = {"classes": self.classes, "has_null": self.has_null, "steps": self.steps, "guidance": self.guidance}
        known |= {"grid": self.grid} if self.grid else {}
        (folder / "drawing.json").write_text(json.dumps(known, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, name: str = "") -> PipelineModel:
        """A pipeline's folder: safetensors alone, no code.

        Raises:
            UntrustedError: it has other parts than are known here, or weights in another format.
            CompatibilityError: a scheduler without alphas, or a prediction that is not known.
        """
        import diffusers
        import transformers

        check_model_folder(folder, name=name or None)
        try:
            index = read_json(folder / "model_index.json")
            classes = {part: index[part][1] for part in ("unet", "scheduler")}
            classes |= {p: index[p][1] for p in PARTS if p in index and index[p][1] is not None}
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise UntrustedError(f"{name or folder}: model_index.json does not name a unet and a scheduler") from error
        for part, known in PARTS.items():
            if classes.get(part, known[0]) not in known:
                raise UntrustedError(
                    f"{name or folder}: its {part} is a {classes[part]}, which cannot be opened here",
                    hint=f"expected {' or '.join(known)}",
                )
        made = getattr(diffusers, classes.pop("scheduler"), None)
        if not (isinstance(made, type) and issubclass(made, diffusers.SchedulerMixin)):
            raise UntrustedError(f"{name or folder}: {index['scheduler'][1]} is not a scheduler of diffusers")
        scheduler, opened = made.from_pretrained(folder / "scheduler"), {}
        for part, known in classes.items():
            read = getattr(transformers if part in ("text_encoder", "tokenizer") else diffusers, known).from_pretrained
            try:
                if part == "tokenizer":
                    opened[part] = read(folder / part, local_files_only=True)
                    continue
                opened[part], found = read(
                    folder / part, local_files_only=True, use_safetensors=True, output_loading_info=True
                )
                if lost := sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"]))):
                    raise ValueError(f"it has no weights for {len(lost)} of its parts ({', '.join(lost[:3])})")
            except (OSError, ValueError, RuntimeError) as error:
                raise UntrustedError(f"{name or folder}: its {part} cannot be opened: {error}") from error
        known = folder / "drawing.json"
        said = read_json(known) if known.is_file() else {}
        student = cls(opened.pop("unet"), scheduler, opened, {k: v for k, v in said.items() if v is not None})
        student.module.eval()
        return student

    @property
    def library(self) -> str:
        return "diffusers"

    def usage(self) -> str:
        calls = 1 if self.one_call else self.steps
        if self.prompts:
            scale = f'"a picture", num_inference_steps={calls}, guidance_scale={self._scale():g}'
            return (
                "from diffusers import StableDiffusionPipeline\n"
                'pipeline = StableDiffusionPipeline.from_pretrained("{path}")\n'
                f"picture = pipeline({scale}).images[0]"
            )
        if self.classes is None:
            return (
                'from diffusers import DDIMPipeline\npipeline = DDIMPipeline.from_pretrained("{path}")\n'
                f"picture = pipeline(num_inference_steps={calls}).images[0]"
            )
        shape = ", ".join(map(str, self.shape))
        return (
            "import torch\nfrom diffusers import DDIMScheduler, UNet2DModel\n"
            'unet = UNet2DModel.from_pretrained("{path}", subfolder="unet")\n'
            'scheduler = DDIMScheduler.from_pretrained("{path}", subfolder="scheduler")\n'
            f"x, label = torch.randn(1, {shape}), torch.tensor([0])  # {', '.join(self.classes[:10])}\n"
            f"scheduler.set_timesteps({calls})\nwith torch.no_grad():\n    for t in scheduler.timesteps:\n"
            "        x = scheduler.step(unet(x, t, class_labels=label).sample, t, x).prev_sample  # -1 to 1"
        )

    def _scale(self) -> float:
        """What the library's pipeline is given as guidance."""
        return self.guidance[0] if isinstance(self.guidance, tuple) else 1.0


class Unet(PipelineModel):
    """`unet:width=32,levels=2,layers=1`: a fresh U-Net of the diffusers library; each level has half the size and twice
    the channels. Its scheduler is DDIM with the cosine of arXiv:2102.09672, of 1,000 steps."""

    Options = FreshOptions

    def __init__(self, argument: str, context: BuildContext):
        from diffusers import DDIMScheduler, UNet2DModel

        numbers = sizes("unet", argument, width=32, levels=2, layers=1)
        (channels, height, width), more = of_rows("unet", context)
        if "words" in more:
            raise UsageError("student unet: is told one class a picture (conditional=words)", hint="conditional: true")
        levels, wide = numbers["levels"], numbers["width"]
        if height % 2 ** (levels - 1) or width % 2 ** (levels - 1):
            raise CompatibilityError(
                f"student unet:{argument}: {height} x {width} pixels cannot be halved {levels - 1} times",
                hint="take fewer levels, or another size: resized:SIZE:DATA",
            )
        torch.manual_seed(context.seed)
        unet = UNet2DModel(
            sample_size=(height, width), in_channels=channels, out_channels=channels,
            block_out_channels=[wide * 2**n for n in range(levels)], layers_per_block=numbers["layers"],
            down_block_types=["DownBlock2D"] * levels, up_block_types=["UpBlock2D"] * levels,
            norm_num_groups=gcd(8, wide), attention_head_dim=gcd(8, wide),
            num_class_embeds=len(more["classes"]) + 1 if "classes" in more else None,
        )  # fmt: skip
        gives = SAID[more["prediction"]]
        scheduler = DDIMScheduler(
            num_train_timesteps=TRAINING_STEPS, beta_schedule="squaredcos_cap_v2", prediction_type=gives,
            clip_sample=False,
        )  # fmt: skip
        super().__init__(unet, scheduler, known=more, start={"how": f"fresh unet:{argument}"})


def process_of(scheduler: Any) -> tuple[Process, str]:
    """The process of a scheduler, and what its network gives.

    Raises:
        CompatibilityError: it has no `alphas_cumprod`, or a prediction that is not known.
    """
    kind, config = type(scheduler).__name__, scheduler.config
    if not hasattr(scheduler, "alphas_cumprod"):
        raise CompatibilityError(
            f"{kind} has no alphas_cumprod: its process is not alpha_t x_0 + sigma_t e with alpha^2 + sigma^2 = 1",
            hint="schedulers such as DDPMScheduler, DDIMScheduler and PNDMScheduler have",
        )
    said = config.get("prediction_type", "epsilon")
    if said not in GIVES:
        raise CompatibilityError(
            f"{kind} says prediction_type={said!r}, which cannot be read", hint=f"known are {', '.join(GIVES)}"
        )
    betas = config.get("trained_betas")
    kept = scheduler.alphas_cumprod.tolist() if betas is None else np.cumprod(1 - np.asarray(betas, float)).tolist()
    return Process(kept), GIVES[said]
