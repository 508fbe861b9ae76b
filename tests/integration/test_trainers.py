"""Every trainer that the plugin serves, and what users combine it with: the real scripts on tiny random models.

Each test is a cell of docs/compatibility.md, which `python tests/compatibility.py` writes from such runs.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from adtruns import assert_same_weights, assert_trained_with_adt, host_mentions, rows, slow

from adt_plugin.host.families import FAMILIES, FLUX, SD, SD3, SDXL
from tinyhost.models import TinyModel
from tinyhost.run import TinyRun, run_to_end
from tinyhost.warm import run_warm

Cell = Callable[..., None]
Options = tuple[str | Path, ...]

SCRIPTS = [script for family in FAMILIES for script in family.scripts]
STARTED_ANEW = {family.scripts[0] for family in (SD, SDXL, SD3, FLUX)}
"""By a Python of their own; the others are forked from one that has imported torch."""
TWO_STEPS = ("--max_train_steps", "2")
CACHED_PROMPTS = ("--cache_text_encoder_outputs", "--network_train_unet_only")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_trainer_trains(run_tiny: TinyRun, adt_options: Options, script: str, host_dir: Path, cell: Cell) -> None:
    """At the default's guidance: that of sampling, where the host can encode the empty prompt. Some start as a user's does."""
    cell(script)
    runner = run_to_end if script in STARTED_ANEW else run_warm
    run = run_tiny(*TWO_STEPS, *adt_options, "--adt_cfg_scale", "auto", script=script, runner=runner)
    assert_trained_with_adt(run, turns=2)
    assert len(list(run.output_dir.glob("tiny-adt-0*.png"))) == 1
    guided = not script.startswith("flux") and (host_dir / "library" / "strategy_base.py").is_file()
    assert {row["cfg_scale"] for row in rows(run)} == {3.0 if guided else 1.0}
    assert run.metadata()["ss_adt_cfg_scale"] == ("3" if guided else "1")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_trainer_trains_with_guidance_and_checkpointing(
    run_tiny: TinyRun, adt_options: Options, script: str, host_dir: Path, cell: Cell
) -> None:
    options = ("--gradient_checkpointing", "--adt_cfg_scale", "3")
    cell(script, " ".join(options))
    skip_what_the_host_lacks(host_dir, options)
    run = run_tiny(*TWO_STEPS, *adt_options, *options, script=script)
    assert_trained_with_adt(run, turns=2)


@pytest.mark.parametrize(
    ("family", "script", "options"),
    [
        ("sd2", "train_network.py", ()),
        ("sd2", "train_network.py", ("--v_parameterization",)),
        ("chroma", "flux_train_network.py", ()),
    ],
    ids=["SD 2.x", "SD 2.x, v-prediction", "Chroma"],
)
def test_variants_of_a_family_train(
    run_tiny: TinyRun, tiny_model: TinyModel, adt_options: Options, family: str, script: str, options: Options,
    cell: Cell,
) -> None:  # fmt: skip
    cell(script, f"{family} model {' '.join(map(str, options))}".strip())
    run = run_tiny(*TWO_STEPS, *adt_options, *options, script=script, model=tiny_model(family))
    assert_trained_with_adt(run, turns=2)


def network(module: str, *arguments: str) -> Options:
    """A network module and its arguments."""
    return ("--network_module", module, *(("--network_args", *arguments) if arguments else ()))


LYCORIS = "preset=attn-mlp"  # without a preset LyCORIS 4.1 stops the plain host on SD 1.x: duplicated names
SD_LORA, SDXL_LORA, SD3_LORA, FLUX_LORA = (f"{prefix}train_network.py" for prefix in ("", "sdxl_", "sd3_", "flux_"))

COMBINATIONS: list[Any] = [
    (SD_LORA, network("networks.lora", "conv_dim=4", "loraplus_lr_ratio=4")),
    (SD_LORA, network("networks.lora", "down_lr_weight=sine", "mid_lr_weight=0.5", "up_lr_weight=1,1,1,1,1,1,0,0,0,0,0,0")),
    (SD_LORA, network("networks.lora_fa")),
    (SD_LORA, network("networks.dylora")),
    (SD_LORA, network("networks.oft")),
    (SDXL_LORA, network("networks.loha")),
    (SDXL_LORA, network("networks.lokr")),
    (SD_LORA, network("lycoris.kohya", "algo=locon", LYCORIS)),
    (SD_LORA, network("lycoris.kohya", "algo=loha", LYCORIS)),
    (SD_LORA, network("lycoris.kohya", "algo=lokr", LYCORIS, "factor=4")),
    (SD_LORA, network("lycoris.kohya", "algo=locon", LYCORIS, "dora_wd=True")),
    (SD_LORA, network("lycoris.kohya", "algo=boft", LYCORIS)),
    (SD_LORA, network("lycoris.kohya", "algo=glora", LYCORIS)),
    (SD_LORA, network("lycoris.kohya", "algo=diag-oft", LYCORIS, "dropout=0.1", "rank_dropout=0.1", "module_dropout=0.1")),
    slow(SD_LORA, network("lycoris.kohya", "algo=ia3", LYCORIS)),
    slow(SD_LORA, network("lycoris.kohya", "algo=lokr", LYCORIS, "rank_dropout=0.1", "module_dropout=0.1")),
    (SD_LORA, ("--cache_latents_to_disk",)),
    (SD_LORA, ("--mixed_precision", "bf16", "--full_bf16")),
    (SD_LORA, ("--weighted_captions",)),
    (SD_LORA, ("--max_token_length", "150", "--clip_skip", "2")),
    (SD_LORA, ("--noise_offset", "0.1", "--min_snr_gamma", "5")),
    (SD_LORA, ("--multires_noise_iterations", "4", "--ip_noise_gamma", "0.1")),
    (SD_LORA, ("--scale_weight_norms", "0.1", "--max_grad_norm", "0.5")),
    (SD_LORA, ("--sdpa",)),
    (SD_LORA, ("--adt_memory", "fast", "--gradient_checkpointing")),
    (SD_LORA, ("--adt_decode_crop", "32")),
    ("fine_tune.py", ("--train_text_encoder",)),
    ("train_db.py", ("--mixed_precision", "bf16", "--cache_latents")),
    (SDXL_LORA, ("--v_parameterization", "--zero_terminal_snr")),
    (SDXL_LORA, (*CACHED_PROMPTS, "--cache_latents", "--adt_cfg_scale", "3")),
    (SDXL_LORA, ("--mixed_precision", "bf16", "--full_bf16", "--gradient_checkpointing")),
    (SDXL_LORA, (*network("networks.oft"), "--gradient_checkpointing")),
    slow("sdxl_train.py", ("--block_lr", ",".join(["1e-3"] * 12 + ["1e-4"] * 11))),
    ("sdxl_train.py", ("--train_text_encoder", "--mixed_precision", "bf16", "--full_bf16")),
    (SD3_LORA, (*CACHED_PROMPTS, "--mixed_precision", "bf16", "--adt_cfg_scale", "3")),
    (SD3_LORA, (*CACHED_PROMPTS, "--mixed_precision", "bf16", "--fp8_base")),
    (SD3_LORA, ("--pos_emb_random_crop_rate", "0.5")),
    ("sd3_train.py", ("--cache_text_encoder_outputs", "--use_t5xxl_cache_only", "--train_text_encoder")),
    (FLUX_LORA, (*CACHED_PROMPTS, "--mixed_precision", "bf16", "--fp8_base")),
    (FLUX_LORA, ("--timestep_sampling", "flux_shift", "--model_prediction_type", "sigma_scaled")),
    ("flux_train.py", ("--mixed_precision", "bf16", "--full_bf16")),
    ("lumina_train_network.py", (*CACHED_PROMPTS, "--adt_cfg_scale", "3")),
    ("anima_train_network.py", (*CACHED_PROMPTS, "--adt_cfg_scale", "3")),
    ("anima_train_network.py", ("--gradient_checkpointing", "--unsloth_offload_checkpointing")),
    ("hunyuan_image_train_network.py", ("--cache_latents_to_disk", "--gradient_checkpointing")),
]


def title(case: object) -> str:
    """A combination as its id: the options in one word each."""
    return "+".join(map(str, case)) if isinstance(case, tuple) else str(case)


@pytest.mark.parametrize(("script", "options"), COMBINATIONS, ids=title)
def test_combinations_train(
    run_tiny: TinyRun, adt_options: Options, script: str, options: Options, host_dir: Path, cell: Cell
) -> None:
    cell(script, " ".join(map(str, options)))
    skip_what_the_host_lacks(host_dir, options)
    assert_trained_with_adt(run_tiny(*TWO_STEPS, *adt_options, *options, script=script), turns=2)


OF_ITS_OWN_RATE = ("--learning_rate", "1")

OPTIMIZERS: list[Any] = [
    ("prodigyopt", ("Prodigy", *OF_ITS_OWN_RATE)),
    ("bitsandbytes", ("AdamW8bit",)),
    slow("bitsandbytes", ("PagedAdamW8bit",)),
    slow("dadaptation", ("DAdaptAdam", *OF_ITS_OWN_RATE)),
    slow("lion_pytorch", ("Lion",)),
    slow("prodigyplus", ("prodigyplus.ProdigyPlusScheduleFree", *OF_ITS_OWN_RATE)),
    slow("pytorch_optimizer", ("pytorch_optimizer.CAME",)),
    slow("pytorch_optimizer", ("pytorch_optimizer.DAdaptAdam", *OF_ITS_OWN_RATE)),
    slow("schedulefree", ("RAdamScheduleFree",)),
    slow("transformers", ("AdaFactor",)),
]
"""The package that the host imports for each, and its options."""


@pytest.mark.parametrize(("package", "options"), OPTIMIZERS, ids=title)
def test_optimizers_of_other_packages_train(
    run_tiny: TinyRun, adt_options: Options, package: str, options: Options, host_dir: Path, cell: Cell
) -> None:
    given = ("--optimizer_type", *options)
    cell(SD_LORA, " ".join(map(str, given)))
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    skip_what_the_host_lacks(host_dir, given)
    assert_trained_with_adt(run_tiny(*TWO_STEPS, *adt_options, *given), turns=2)


def skip_what_the_host_lacks(host_dir: Path, options: Options) -> None:
    """Network modules and options that came with a later version, of sd-scripts or of LyCORIS."""
    for word in map(str, options):
        if word.startswith("networks.") and not (host_dir / Path(*word.split("."))).with_suffix(".py").is_file():
            pytest.skip(f"this version of sd-scripts has no {word}")
        if word == "--adt_cfg_scale" and not (host_dir / "library" / "strategy_base.py").is_file():
            pytest.skip("this version of sd-scripts has no encoding strategies")
        if word == "lycoris.kohya" and find_spec("lycoris") is None:
            pytest.skip("lycoris is not installed")
        if word == "algo=boft" and version("lycoris_lora").startswith("3."):
            pytest.skip("LyCORIS 3 itself fails with it on a text encoder")
        if word.endswith("ScheduleFree") and not host_mentions(host_dir, "schedulefree"):
            pytest.skip("this version of sd-scripts has no schedule-free optimizers")


# Off is off, and looking on changes nothing, in every family of the paper


@pytest.mark.parametrize("script", [SD.scripts[0], SDXL.scripts[0], SD3.scripts[0]])
def test_idle_and_looking_on_change_no_bit(run_tiny: TinyRun, adt_options: Options, script: str, cell: Cell) -> None:
    cell(script, "bit-identical without --adt and with --adt_weight 0")
    plain = run_tiny(*TWO_STEPS, "--network_dropout", "0.1", script=script, env={"ADT_PLUGIN_DISABLE": "1"})
    idle = run_tiny(*TWO_STEPS, "--network_dropout", "0.1", script=script)
    looking_on = run_tiny(*TWO_STEPS, "--network_dropout", "0.1", *adt_options, "--adt_weight", "0", script=script)
    assert_same_weights(plain, idle)
    assert_same_weights(plain, looking_on)
    assert len(rows(looking_on)) == 2


@pytest.mark.parametrize("script", [SD.scripts[0], SD3.scripts[0]])
def test_previews_are_sampled_between_turns(
    run_tiny: TinyRun, adt_options: Options, script: str, tmp_path: Path, cell: Cell
) -> None:
    cell(script, "--sample_prompts prompts.txt --sample_every_n_steps 1")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red square --w 64 --h 64 --s 2")
    run = run_tiny(*TWO_STEPS, *adt_options, "--sample_prompts", prompts, "--sample_every_n_steps", "1", script=script)
    assert_trained_with_adt(run, turns=2)
    assert len(list((run.output_dir / "sample").glob("*.png"))) == 2
