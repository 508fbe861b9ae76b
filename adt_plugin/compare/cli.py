"""The command `compare` of `python -m adt_plugin`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adt_plugin.compare.families import Model, identify, native_size
from adt_plugin.compare.inputs import caption_prompts, neutral_prompts, read_prompts, read_references
from adt_plugin.compare.models import Parts
from adt_plugin.compare.settings import CHUNK, SCORED, Candidate, Prompt, Sampling, Settings, trained_lengths
from adt_plugin.core.errors import AdtError, ConfigError

INTERRUPTED = 130  # the shell's status of a command that Ctrl-C ended
MOST_CAPTIONS = 16

EPILOG = """\
example:
  adt compare --base sd15.safetensors --lora plain=plain.safetensors --lora adt=adt.safetensors \\
    --prompts prompts.txt --reference train --seeds 8 --out comparison

Interrupted, the same command goes on where it stopped. docs/compare.md says what the figures mean.
"""


def compare_main(argv: Sequence[str], prog: str = "adt compare") -> None:
    """Run `compare` with these arguments.

    Raises:
        SystemExit: 2 for wrong options, 1 with one sentence where a file is wrong, 130 after Ctrl-C.
    """
    parser = compare_parser(prog)
    given = parser.parse_args(argv)
    try:
        settings = settings_of(given)
        from adt_plugin.compare.run import PAGE, compare
        from adt_plugin.compare.verdict import cautions, headline, side_effects, standings

        scores = compare(settings)
    except KeyboardInterrupt:
        print(f"\nInterrupted. Finished images are kept in {given.out.resolve()}: the same command goes on from there.")
        raise SystemExit(INTERRUPTED) from None
    except (AdtError, OSError, ImportError) as error:
        raise SystemExit(f"adt_plugin: {error}") from error
    print("\n".join([headline(scores), *standings(scores), *side_effects(scores), *cautions(scores)]))
    print(f"Open {(given.out / PAGE).resolve()}")


def compare_parser(prog: str) -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = argparse.ArgumentParser(
        prog,
        description="Did it help my model? One base, several candidates, the same noise: figures, images and a verdict.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_what(parser.add_argument_group("what is compared"))
    _add_how(parser.add_argument_group("how it is sampled"))
    _add_files(parser.add_argument_group("files beside the model, as for training"))
    _add_machine(parser.add_argument_group("the machine"))
    return parser


def _add_what(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--base", type=Path, required=True, help="model that the candidates start from: one file or a diffusers folder"
    )
    group.add_argument(
        "--lora", type=named, action="append", default=[], metavar="NAME=FILE", help="a LoRA or LyCORIS of the base"
    )
    group.add_argument(
        "--checkpoint", type=named, action="append", default=[], metavar="NAME=PATH", help="a fine-tuned whole model"
    )
    group.add_argument("--reference", type=Path, required=True, metavar="FOLDER", help="training images, captions beside them")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="one per line (default: captions of the training images)")
    group.add_argument(
        "--drift_prompts",
        default="auto",
        metavar="FILE",
        help="unrelated prompts: a file, none, or the built-in ones (default)",
    )
    group.add_argument("--out", type=Path, default=Path("comparison"), help="folder of the results (default: comparison)")


def _add_how(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--steps", type=whole_numbers, default=[20], metavar="N,N", help="sampler steps, several to compare (default: 20)"
    )
    group.add_argument("--cfg", type=scales, metavar="X,X", help="guidance scales (default: 7; SD3 5, FLUX 3.5)")
    group.add_argument("--seeds", type=whole_number, default=4, metavar="N", help="images per prompt (default: 4)")
    group.add_argument("--first_seed", type=int, default=1, metavar="N", help="the others follow it (default: 1)")
    group.add_argument(
        "--size", type=size, metavar="WxH", help="width x height in pixels (default: what the model was made for)"
    )
    group.add_argument("--sampler", choices=["ddim", "euler", "dpm++"], default="euler", help="of SD and SDXL (default: euler)")
    group.add_argument("--network_mul", type=float, default=1.0, metavar="X", help="strength of every --lora (default: 1)")
    group.add_argument(
        "--clip_skip",
        type=whole_number,
        default=1,
        metavar="N",
        help="of SD 1.x and 2.x, as in training (default: 1); sd-scripts trains SDXL without it",
    )
    group.add_argument(
        "--max_token_length",
        type=int,
        choices=[75, 150, 225],
        help="tokens of a prompt that SD and SDXL read, as in training (default: the most that a --lora was trained on, or 75)",
    )
    group.add_argument("--v_parameterization", action="store_true", help="the model predicts v, as in training")


def _add_files(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--vae", "--ae", type=Path, metavar="FILE", help="VAE in place of the model's; for FLUX a must")
    for name in ("clip_l", "clip_g", "t5xxl"):
        group.add_argument(f"--{name}", type=Path, metavar="FILE", help="text encoder of SD3 or FLUX")
    group.add_argument(
        "--tokenizer_cache_dir", type=Path, metavar="FOLDER", help="tokenizers (default: the Hugging Face cache)"
    )
    group.add_argument(
        "--model_config", type=Path, metavar="FOLDER", help="diffusers folder that describes a file of unusual sizes"
    )
    group.add_argument("--backbone", default="facebook/dinov2-base", help="DINOv2 for the figures: a name or a folder")


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--batch_size", type=whole_number, default=1, metavar="N", help="images at a time (default: 1)")
    group.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    group.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="(default: bfloat16 on cuda, else float32)")
    group.add_argument("--offload", action="store_true", help="keep only the part of the model on the device that is at work")


def named(text: str) -> tuple[str, Path]:
    """Parse NAME=PATH."""
    name, equals, path = text.partition("=")
    if not (equals and name.strip() and path):
        raise argparse.ArgumentTypeError(f"expected NAME=FILE such as plain=plain.safetensors, got {text}")
    return name.strip(), Path(path)


def whole_number(text: str) -> int:
    """Parse a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return number


def whole_numbers(text: str) -> list[int]:
    """Parse whole numbers of at least 1 with commas between."""
    return [whole_number(part) for part in text.split(",")]


def scales(text: str) -> list[float]:
    """Parse guidance scales of at least 1 with commas between; 1 is none."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [0.0]
    if not all(1 <= number <= 100 for number in numbers):
        raise argparse.ArgumentTypeError(f"expected numbers from 1 to 100 such as 5,7, got {text}")
    return numbers


def size(text: str) -> tuple[int, int]:
    """Parse a size such as 512x768, or 512 for a square."""
    parts = text.lower().split("x")
    try:
        width, height = int(parts[0]), int(parts[-1])
    except ValueError:
        width = height = 0
    if len(parts) > 2 or min(width, height) < 8:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT such as 512x768, got {text}")
    return width, height


def settings_of(given: argparse.Namespace) -> Settings:
    """Return the settings of parsed arguments, with every file's kind checked and no weight read.

    Raises:
        ConfigError: arguments that cannot be together, or a file that is wrong.
    """
    candidates = candidates_of(given)
    if given.out.exists() and not given.out.is_dir():
        raise ConfigError(f"--out: {given.out} is a file: give a folder.")
    model = identify("--base", given.base)
    parts = Parts(
        vae=given.vae,
        clip_l=given.clip_l,
        clip_g=given.clip_g,
        t5xxl=given.t5xxl,
        tokenizers=given.tokenizer_cache_dir,
        config=given.model_config,
        v_parameterization=given.v_parameterization,
    )
    check_files(parts)
    width, height = given.size or (native_size(model),) * 2
    check_size(model, width, height)
    if model.family.name == "sdxl" and given.clip_skip != 1:
        print(
            "--clip_skip is left out: sd-scripts trains SDXL on the last but one layer of its text encoders, whatever it says."
        )
    device = given.device or best_device()
    guidance = given.cfg or [model.family.guidance]
    return Settings(
        candidates=candidates,
        prompts=tuple(prompts_of(given)),
        samplings=tuple(dict.fromkeys(Sampling(steps, cfg) for steps in given.steps for cfg in guidance)),
        seeds=tuple(range(given.first_seed, given.first_seed + given.seeds)),
        size=(width, height),
        sampler=given.sampler,
        reference=given.reference,
        out=given.out,
        backbone=given.backbone,
        device=device,
        dtype=given.dtype or ("bfloat16" if device.startswith("cuda") else "float32"),
        parts=parts,
        network_mul=given.network_mul,
        clip_skip=1 if model.family.name == "sdxl" else given.clip_skip,
        max_token_length=token_length(given.max_token_length, model, candidates),
        batch_size=given.batch_size,
        offload=given.offload,
    )


def candidates_of(given: argparse.Namespace) -> tuple[Candidate, ...]:
    """Return the base, the LoRAs and the checkpoints.

    Raises:
        ConfigError: there is nothing beside the base, or two have one name.
    """
    loras = [Candidate(name, "lora", path) for name, path in given.lora]
    checkpoints = [Candidate(name, "checkpoint", path) for name, path in given.checkpoint]
    candidates = (Candidate("base", "base", given.base), *loras, *checkpoints)
    names = [candidate.name for candidate in candidates]
    if len(candidates) < 2:
        raise ConfigError("there is nothing to compare with --base: add --lora NAME=FILE or --checkpoint NAME=PATH.")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two candidates are called {name} (base is --base's own name): give each --lora and --checkpoint a name."
            )
    return candidates


def token_length(given: int | None, model: Model, candidates: Sequence[Candidate]) -> int:
    """Return how many tokens of a prompt are read: what was given, or else what the LoRAs were trained with.

    Raises:
        ConfigError: given for a family that has no such choice.
    """
    if model.family.chunked:
        return given or max(trained_lengths(candidates).values(), default=CHUNK)
    if given is not None:
        raise ConfigError(f"--max_token_length is of SD and SDXL, T5 reads long prompts of {model.family.title}: leave it out.")
    return CHUNK


def prompts_of(given: argparse.Namespace) -> list[Prompt]:
    """Return the prompts that are scored, and those for the drift."""
    if given.prompts is not None:
        prompts = read_prompts(given.prompts, "--prompts", SCORED)
    else:
        prompts = caption_prompts(read_references(given.reference), MOST_CAPTIONS)
    return [*prompts, *neutral_prompts(given.drift_prompts)]


def check_files(parts: Parts) -> None:
    """Raise ConfigError unless every file beside the model is there."""
    for flag, path in (("--vae", parts.vae), ("--clip_l", parts.clip_l), ("--clip_g", parts.clip_g), ("--t5xxl", parts.t5xxl)):
        if path is not None and not path.exists():
            raise ConfigError(f"{flag}: there is no {path}.")
    for flag, path in (("--tokenizer_cache_dir", parts.tokenizers), ("--model_config", parts.config)):
        if path is not None and not path.is_dir():
            raise ConfigError(f"{flag}: there is no folder {path}.")


def check_size(model: Model, width: int, height: int) -> None:
    """Raise ConfigError unless the model can make images of this size."""
    multiple = model.family.multiple
    if width % multiple or height % multiple:
        raise ConfigError(f"--size {width}x{height}: both sides must be multiples of {multiple} for {model.family.title}.")


def best_device() -> str:
    """Return the fastest device that PyTorch finds."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
