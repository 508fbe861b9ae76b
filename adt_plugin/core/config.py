"""The `--adt_*` options: one table for argparse, TOML, range checks, help texts and metadata.

A field of `ADTConfig` *is* an option: its name after `--adt_`, its type, default, range and help text are read from here
by everything else. Standard library only, because the host's parser is extended before torch is needed.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from adt_plugin import __version__

PREFIX = "adt_"
OWN_DECODER = "vae"
AUGMENTATIONS = ("color", "translation", "cutout", "shift")


class ConfigError(ValueError):
    """A wrong option or combination: one sentence that names the flag and the way out."""


def option(
    default: Any,
    help_en: str,
    help_ja: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A dataclass field that carries what argparse, the range checks and the documentation need."""
    metadata = {"help": f"{help_en} / {help_ja}", "low": low, "high": high, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ADTConfig:
    """Every `--adt_*` option, checked. Where each default comes from: docs/method.md.

    Raises:
        ConfigError: a value is out of range or two values contradict each other; the message names the flag.
    """

    weight: float = option(
        1.0,
        "weight of the adversarial gradient; 0 trains the discriminator only and looks on",
        "敵対的勾配の重み",
        low=0.0,
        high=100.0,
    )
    balance: str = option(
        "cap",
        "how the weight is applied: ratio to the diffusion gradient, cap (its ratio to the usual turn, never amplified), none",
        "重みの適用方法",
        choices=("ratio", "cap", "none"),
    )
    max_grad_ratio: float = option(
        3.0,
        "upper bound of adversarial over diffusion gradient norm at the denoiser's output",
        "勾配ノルム比の上限",
        low=0.0,
        high=1000.0,
    )
    steps: int = option(
        5, "steps of the inference grid that the unroll walks (m)", "推論グリッドのステップ数", low=1, high=1000
    )
    grad_steps: int = option(2, "unrolled steps that carry gradient per turn (K)", "勾配を流すステップ数", low=1, high=1000)
    grad_mask: str = option(
        "random",
        "which unrolled steps carry gradient: random, even (random offset), last, all (ignores --adt_grad_steps)",
        "勾配を流すステップの選び方",
        choices=("random", "even", "last", "all"),
    )
    sampler: str = option("auto", "sampler of the unroll", "展開に使うサンプラー", choices=("auto", "ddim", "euler", "dpm++"))
    spacing: str = option(
        "auto",
        "spacing of the inference grid; auto is leading, trailing with zero terminal SNR, sd-scripts' own for flow models",
        "推論グリッドの間隔",
        choices=("auto", "leading", "trailing", "linspace"),
    )
    flow_shift: float = option(
        0.0,
        "shift of the inference grid of flow models; 0 is what sd-scripts samples the model with",
        "フローモデルの推論グリッドのシフト（0はsd-scriptsのサンプリングと同じ値）",
        low=0.0,
        high=100.0,
    )
    cfg_scale: float = option(
        1.0,
        "classifier-free guidance in the unroll, against the empty prompt; above 1 every denoiser call costs twice",
        "展開時のCFGスケール（1より大きいと2倍の計算）",
        low=1.0,
        high=50.0,
    )
    start_min: float = option(
        0.0, "lowest start of the unroll, as a fraction of the grid", "展開開始位置の下限", low=0.0, high=1.0
    )
    start_max: float = option(
        1.0, "highest start of the unroll, as a fraction of the grid", "展開開始位置の上限", low=0.0, high=1.0
    )
    every: int = option(
        2,
        "an adversarial turn every N optimizer steps, once the warm-up is over",
        "Nステップごとに敵対的ターンを実行（ウォームアップ後）",
        low=1,
        high=1_000_000,
    )
    warmup: int = option(
        100,
        "first turns, one in every batch, that train the discriminator only",
        "識別器のみを学習する最初のターン数（毎バッチ）",
        low=0,
        high=1_000_000,
    )
    backbone: str = option(
        "facebook/dinov2-base",
        "frozen vision transformer: hub name or local folder",
        "固定ビジョンTransformer（ハブ名またはフォルダ）",
    )
    blocks: str = option(
        "auto", "backbone blocks that the heads read, e.g. 3,6,9,12; auto is four, evenly spaced", "ヘッドが読むブロック番号"
    )
    disc_type: str = option(
        "siamese",
        "siamese scores a generated image against its real one, unary scores it alone",
        "識別器の種類",
        choices=("siamese", "unary"),
    )
    disc_lr: float = option(5e-4, "learning rate of the discriminator's heads (AdamW)", "識別器の学習率", low=0.0, high=1.0)
    disc_betas: str = option("0.0,0.99", "AdamW betas of the discriminator's heads", "識別器のAdamWのbeta")
    disc_width: int = option(256, "channels of the discriminator's heads", "識別器ヘッドのチャンネル数", low=8, high=8192)
    disc_weights: str = option(
        "none",
        "start from the discriminator in a state folder or its adt_state.safetensors; none starts from random heads",
        "学習済み識別器（stateフォルダまたはadt_state.safetensors、noneは初期値から）",
    )
    augment: str = option(
        ",".join(AUGMENTATIONS),
        "differentiable augmentations of the discriminator's inputs, or none",
        "識別器入力の微分可能なデータ拡張",
    )
    noise: float = option(
        0.0,
        "standard deviation of the noise on the discriminator's inputs",
        "識別器入力に加えるノイズの標準偏差",
        low=0.0,
        high=10.0,
    )
    image_size: int = option(
        0,
        "images reach the discriminator with this many pixels squared, aspect ratio kept; 0 is the backbone's own size",
        "識別器に入力する画像サイズ（0はバックボーンの既定値）",
        low=0,
        high=4096,
    )
    decode_dtype: str = option(
        "auto",
        "precision of the decoder and the backbone; auto is bf16 where the GPU has it",
        "デコーダとバックボーンの精度",
        choices=("auto", "fp32", "bf16"),
    )
    decoder: str = option(
        OWN_DECODER,
        "what decodes latents: vae is the run's own decoder; a folder holds a tiny autoencoder (TAESD) for the same latents",
        "潜在変数のデコーダ（vae: 学習モデルのVAE、フォルダ: TAESDなどの軽量版）",
    )
    decode_crop: int = option(
        256,
        "decode a random square of this many pixels instead of the whole image, a multiple of 8; 0 decodes the whole image",
        "画像全体の代わりにデコードするランダムな正方形の一辺（8の倍数、0は画像全体）",
        low=0,
        high=8192,
    )
    memory: str = option(
        "low",
        "low replays the steps that carry gradient, fast keeps their graphs (K graphs in memory, K forwards less), "
        "auto is fast where a CUDA device has room for it",
        "勾配を流すステップの扱い（low: 再計算、fast: グラフを保持、auto: 空きメモリで判断）",
        choices=("low", "fast", "auto"),
    )
    offload: bool = option(
        False,
        "keep decoder and backbone in the computer's memory while a turn does not need them: less GPU memory, more time",
        "不要な間はデコーダとバックボーンをCPUメモリに置く（GPUメモリ節約、速度低下）",
    )
    max_bad_turns: int = option(
        10,
        "turns in a row with NaN or infinity that end the run, with its state saved; 0 lets it go on",
        "NaNや無限大のターンがこの回数続いたら状態を保存して終了（0で続行）",
        low=0,
        high=1_000_000,
    )
    seed: int = option(0, "seed of the plugin's own random generators", "プラグイン専用の乱数シード", low=0, high=2**31 - 1)
    pictures_every: int = option(
        100,
        "a picture of generated beside real images every N turns; 0 turns it off",
        "Nターンごとに画像を保存（0で無効）",
        low=0,
        high=1_000_000,
    )
    train_text_encoder: bool = option(
        False, "not built yet: the adversarial gradient trains the denoiser alone", "未対応（敵対的勾配はデノイザーのみを学習）"
    )
    profile: bool = option(False, "measure each stage of a turn (synchronises the device)", "各処理の時間を計測")

    def __post_init__(self) -> None:
        for spec in fields(self):
            _check_range(spec, getattr(self, spec.name))
        if self.start_min > self.start_max:
            raise ConfigError(f"--adt_start_min ({self.start_min}) is above --adt_start_max ({self.start_max}): exchange them.")
        if self.decode_crop % 8:
            raise ConfigError(f"--adt_decode_crop must be a multiple of 8, such as 224 or 256; got {self.decode_crop}.")
        if self.train_text_encoder:
            raise ConfigError(
                "--adt_train_text_encoder is not built yet: leave it out; sd-scripts itself may go on training text encoders."
            )
        _ = self.beta_pair, self.augmentations, self.block_indices  # parse now, so that errors come before models are loaded

    @property
    def beta_pair(self) -> tuple[float, float]:
        """AdamW's two betas, each in [0, 1)."""
        try:
            first, second = (float(part) for part in self.disc_betas.split(","))
        except ValueError:
            raise ConfigError(
                f"--adt_disc_betas needs two numbers with a comma and no space, such as 0.0,0.99; got {self.disc_betas!r}."
            ) from None
        if not (0.0 <= first < 1.0 and 0.0 <= second < 1.0):
            raise ConfigError(f"--adt_disc_betas must lie in [0, 1), such as 0.0,0.99; got {self.disc_betas!r}.")
        return first, second

    @property
    def augmentations(self) -> tuple[str, ...]:
        """Names from `AUGMENTATIONS`, in the order in which they are applied; empty for `none`."""
        if self.augment == "none":
            return ()
        names = tuple(self.augment.split(","))
        for name in names:
            if name not in AUGMENTATIONS:
                raise ConfigError(
                    f"--adt_augment does not know {name!r}: use none, or names from {','.join(AUGMENTATIONS)}, with no spaces."
                )
        return names

    @property
    def block_indices(self) -> tuple[int, ...] | None:
        """Backbone blocks from 1 (first) to its depth (last); None lets the backbone choose."""
        if self.blocks == "auto":
            return None
        try:
            indices = tuple(int(part) for part in self.blocks.split(","))
        except ValueError:
            indices = ()
        if not indices or min(indices) < 1:
            raise ConfigError(
                f"--adt_blocks needs auto, or block numbers from 1 such as 3,6,9,12, with no spaces; got {self.blocks!r}."
            )
        return indices

    @classmethod
    def from_namespace(cls, args: argparse.Namespace) -> ADTConfig:
        """Read the options from parsed arguments, which may hold raw TOML values.

        Raises:
            ConfigError: an unknown `adt_*` key (the host lets those of a TOML pass), a wrong type, or a value out of range.
        """
        reject_unknown_keys(vars(args))
        given = {spec.name: getattr(args, PREFIX + spec.name) for spec in fields(cls) if hasattr(args, PREFIX + spec.name)}
        return cls(**{spec.name: _convert(spec, given[spec.name]) for spec in fields(cls) if spec.name in given})

    def metadata(self) -> dict[str, str]:
        """`ss_adt_*` strings for saved files; a local folder appears by its name only."""
        values = {spec.name: str(getattr(self, spec.name)) for spec in fields(self)}
        for name in ("backbone", "decoder", "disc_weights"):
            if Path(values[name]).exists():
                values[name] = Path(values[name]).resolve().name
        return {"ss_adt_version": __version__} | {f"ss_{PREFIX}{name}": value for name, value in values.items()}


def _kind(spec: Field[Any]) -> type:
    """The option's Python type: bool, int, float or str."""
    return type(spec.default)


def _convert(spec: Field[Any], value: Any) -> Any:
    """A raw command-line or TOML value as the option's type; TOML lists stand for comma-separated values."""
    flag, kind = f"--{PREFIX}{spec.name}", _kind(spec)
    if isinstance(value, (list, tuple)) and kind is str:
        return ",".join(str(part) for part in value)
    if isinstance(value, bool) or kind is bool:
        if not (isinstance(value, bool) and kind is bool):
            raise ConfigError(
                f"{flag} must be {'true or false' if kind is bool else f'of type {kind.__name__}'}, got {value!r}."
            )
        return value
    try:
        converted = kind(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{flag} must be of type {kind.__name__}, got {value!r}.") from None
    if kind is int and converted != float(value):
        raise ConfigError(f"{flag} must be a whole number, got {value!r}.")
    return converted


def _check_range(spec: Field[Any], value: Any) -> None:
    flag, rules = f"--{PREFIX}{spec.name}", spec.metadata
    if rules["choices"] and value not in rules["choices"]:
        raise ConfigError(f"{flag} must be one of {', '.join(rules['choices'])}, got {value!r}.")
    if rules["low"] is not None and not (rules["low"] <= value <= rules["high"]):  # a NaN fails both comparisons
        raise ConfigError(f"{flag} must be from {rules['low']:g} to {rules['high']:g}, got {value!r}.")
    if value == "":
        raise ConfigError(f"{flag} is empty: give it a value or leave it out.")


def option_names() -> list[str]:
    """All keys of the plugin as the namespace and a TOML file spell them, the switch `adt` first."""
    return ["adt"] + [PREFIX + spec.name for spec in fields(ADTConfig)]


def reject_unknown_keys(keys: Iterable[str]) -> None:
    """Stop at a misspelt key, which the host's `--config_file` would silently accept.

    Raises:
        ConfigError: names the key and the nearest valid one.
    """
    valid = option_names()
    for key in keys:
        if key.startswith(PREFIX) and key not in valid:
            nearest = difflib.get_close_matches(key, valid, n=1, cutoff=0.0)[0]
            raise ConfigError(f"unknown option {key}: did you mean {nearest}?")


def add_adt_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--adt` and every `--adt_*` to a parser, as a group of its own. Idempotent."""
    if any("--adt" in action.option_strings for action in parser._actions):
        return
    group = parser.add_argument_group("ADT", "Adversarial Diffusion Tuning (adt_plugin)")
    group.add_argument(
        "--adt",
        action="store_true",
        help="train with adversarial supervision of the sampler's output / 敵対的拡散チューニングを有効にする",
    )
    for spec in fields(ADTConfig):
        flag, help_text = f"--{PREFIX}{spec.name}", spec.metadata["help"]
        if _kind(spec) is bool:
            group.add_argument(flag, action="store_true", help=help_text)
            continue
        choices = spec.metadata["choices"] or None
        group.add_argument(
            flag,
            type=_kind(spec),
            default=spec.default,
            choices=choices,
            help=f"{help_text} (default: {spec.default})".replace("%", "%%"),
        )
