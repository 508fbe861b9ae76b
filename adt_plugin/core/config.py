"""The options, in groups by who reads them: names, types, defaults, ranges and help texts.

A field of a group *is* an option: whatever shows options (a command line, a file, a table) is made from the fields of
`ADTConfig`. Standard library only, because a host's parser is extended before torch is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adt_plugin.core.errors import ConfigError
from adt_plugin.core.option import Options, option

OWN_DECODER = "vae"
HUB_DECODER = "taesd"
NO_WEIGHTS = "none"
AUTO = "auto"
AUGMENTATIONS = ("color", "translation", "cutout", "shift")


def _seed_option() -> Any:
    """Define the option that turn and discriminator share."""
    return option(0, "seed of ADT's own random numbers", "ADT専用の乱数シード", low=0, high=2**31 - 1)


@dataclass(frozen=True)
class TurnConfig(Options):
    """What `AdversarialTurn` reads: how strong, how long, how often, how guided, and the training of the discriminator's heads.

    Raises:
        ConfigError: a value is out of range or two values contradict each other; the message names the flag.
    """

    weight: float = option(
        5.0,
        "strength of the adversarial gradient; 0 trains the discriminator and leaves the model alone",
        "敵対的勾配の強さ（0は識別器のみを学習し、モデルには影響しない）",
        low=0.0,
        high=100.0,
    )
    diversity: float = option(
        0.0,
        "how much a turn compares its images with each other and with other training images, beside each with its own: keeps "
        "their variety like that of the training images; 0 compares each with its own alone",
        "生成画像の多様性を学習画像に合わせる比較の重み（0は各画像をその元画像とのみ比較）",
        low=0.0,
        high=100.0,
    )
    balance: str = option(
        "cap",
        "how the adversarial gradient is scaled to the diffusion loss's: ratio gives every turn --adt_weight times its "
        "norm; cap gives the average turn that norm and lets weak turns stay weak; none multiplies by --adt_weight alone",
        "敵対的勾配の大きさの合わせ方（ratio: 毎回同じ比率、cap: 平均で合わせ弱い勾配は増幅しない、none: 重みのみ）",
        choices=("ratio", "cap", "none"),
    )
    max_grad_ratio: float = option(
        10.0,
        "the adversarial gradient is never larger than this many times the diffusion loss's",
        "拡散損失の勾配に対する敵対的勾配の上限（倍率）",
        low=0.0,
        high=1000.0,
    )
    steps: int = option(
        5,
        "sampler steps of the whole path from noise to image that turns walk parts of (m)",
        "推論グリッドのステップ数",
        low=1,
        high=1000,
    )
    grad_steps: int = option(
        2, "walked steps that are trained in each turn (K)", "1ターンで学習するステップ数", low=1, high=1000
    )
    grad_mask: str = option(
        "random",
        "which walked steps are trained: random, weighted (at random, the more a step counts for the image the likelier), even "
        "(spaced evenly from a random offset), last, all (ignores --adt_grad_steps)",
        "学習するステップの選び方",
        choices=("random", "weighted", "even", "last", "all"),
    )
    start_min: float = option(
        0.4,
        "the least noise that a turn starts from, as a fraction of the path (0 is next to the image, 1 is pure noise)",
        "展開開始位置の下限（0は画像側、1は純粋なノイズ）",
        low=0.0,
        high=1.0,
    )
    start_max: float = option(
        1.0,
        "the most noise that a turn starts from, as a fraction of the path",
        "展開開始位置の上限",
        low=0.0,
        high=1.0,
    )
    cfg_scale: str | float = option(
        AUTO,
        "classifier-free guidance while a turn walks, against the empty prompt: a scale from 1 to 50, or two with a colon, as "
        "in 1:7, between which every turn draws its own; auto is 3 for models that are sampled with guidance, 1 for FLUX.1; "
        "above 1 every step of the unroll costs twice",
        "展開時のCFGスケール（1～50、または1:7のような範囲からターンごとに抽選、1より大きいと2倍の計算、"
        "auto: CFGを使うモデルは3、FLUX.1は1）",
    )
    every: int = option(
        1,
        "one turn in every N optimizer steps of the adversarial part",
        "敵対的学習中、Nステップごとに1ターン実行",
        low=1,
        high=1_000_000,
    )
    warmup: int = option(
        40,
        "number of first turns, one in every batch, that train the discriminator alone",
        "識別器のみを学習する最初のターン数（毎バッチ）",
        low=0,
        high=1_000_000,
    )
    disc_loss: str = option(
        "relativistic",
        "adversarial loss of the discriminator: relativistic asks that real pairs score above generated ones, hinge that both "
        "keep their margins",
        "識別器の敵対的損失",
        choices=("relativistic", "hinge"),
    )
    disc_penalty: float = option(
        0.1,
        "weight of the penalty on steep scores, which keeps the discriminator's gradient worth following; 0 turns it off",
        "識別器のスコアの急な変化に対するペナルティの重み（0で無効）",
        low=0.0,
        high=1000.0,
    )
    disc_steps: int = option(
        3,
        "steps of the discriminator's heads in each turn; all but the first learn from earlier turns",
        "1ターンあたりの識別器の学習回数（2回目以降は過去のターンから学習）",
        low=1,
        high=1000,
    )
    disc_lr: float = option(2e-3, "learning rate of the discriminator's heads (AdamW)", "識別器の学習率", low=0.0, high=1.0)
    disc_betas: str = option("0.0,0.99", "AdamW betas of the discriminator's heads", "識別器のAdamWのbeta")
    decode_crop: int = option(
        256,
        "decode and compare a random square of this many pixels instead of the whole image, a multiple of 8: "
        "less memory and time; 0 takes the whole image",
        "画像全体の代わりにデコードするランダムな正方形の一辺（8の倍数、0は画像全体）",
        low=0,
        high=8192,
    )
    memory: str = option(
        "low",
        "low runs the trained steps twice and needs the least memory; fast keeps the graphs of all K steps and saves K forward "
        "passes; joined pulls them back together with the diffusion loss, for what allows one backward pass only; auto is "
        "joined where the run needs it, fast where a CUDA device has room for it, and steps down where memory runs out",
        "勾配を流すステップの扱い（low: 再計算、fast: グラフを保持、joined: 拡散損失と一度に逆伝播、auto: 自動選択）",
        choices=("low", "fast", "joined", "auto"),
    )
    offload: bool = option(
        False,
        "keep decoder and backbone in the computer's memory while a turn does not need them: less GPU memory, more time",
        "不要な間はデコーダとバックボーンをCPUメモリに置く（GPUメモリ節約、速度低下）",
    )
    profile: bool = option(False, "measure the seconds of each stage of a turn (slows a GPU down)", "各処理の時間を計測")
    seed: int = _seed_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_min > self.start_max:
            raise ConfigError(
                f"--adt_start_min ({self.start_min}) is above --adt_start_max ({self.start_max}): lower the one or raise the "
                "other."
            )
        if self.decode_crop % 8:
            raise ConfigError(f"--adt_decode_crop must be a multiple of 8, such as 224 or 256; got {self.decode_crop}.")
        _ = self.beta_pair, self.guidance_scales  # parse now, so that errors come before models are loaded

    @property
    def guidance_scales(self) -> tuple[float, float]:
        """The least and the greatest scale that a turn may be guided with, in [1, 50]; equal where only one is given.

        Without guidance where `auto` is not settled (`with_guidance`).
        """
        low, colon, high = ("1" if self.cfg_scale == AUTO else str(self.cfg_scale)).partition(":")
        try:
            scales = float(low), float(high if colon else low)
        except ValueError:
            scales = (math.nan, math.nan)
        if not 1 <= scales[0] <= scales[1] <= 50:  # a NaN fails every comparison
            raise ConfigError(
                "--adt_cfg_scale needs auto, a number from 1 to 50, such as 3, or two with a colon and no space, the lower "
                f"one first, such as 1:7; got {self.cfg_scale!r}."
            )
        return scales

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


@dataclass(frozen=True)
class DiscriminatorConfig(Options):
    """What `load_backbone` and `Discriminator.from_config` read.

    Raises:
        ConfigError: a value is out of range or cannot be parsed; the message names the flag.
    """

    backbone: str = option(
        "facebook/dinov2-base",
        "frozen vision transformer that compares images: a hub name, a local folder, or timm: and a timm name",
        "画像を比較する固定ビジョンTransformer（ハブ名、フォルダ、またはtimm:名前）",
    )
    blocks: str = option(
        "auto",
        "blocks of the backbone that the discriminator looks at, e.g. 3,6,9,12; auto is four, evenly spaced",
        "識別器が参照するバックボーンのブロック番号",
    )
    disc_type: str = option(
        "siamese",
        "siamese judges a generated image beside the real one that it started from, unary judges it alone",
        "識別器の種類",
        choices=("siamese", "unary"),
    )
    disc_width: int = option(256, "channels of the discriminator's heads", "識別器ヘッドのチャンネル数", low=8, high=8192)
    augment: str = option(
        ",".join(AUGMENTATIONS),
        "random changes to every image that the discriminator sees, or none",
        "識別器入力の微分可能なデータ拡張（none: なし）",
    )
    noise: float = option(
        0.0,
        "standard deviation of the noise added to every image that the discriminator sees (images lie in -1 to 1)",
        "識別器入力に加えるノイズの標準偏差",
        low=0.0,
        high=10.0,
    )
    image_size: int = option(
        0,
        "images are shown to the discriminator at this many pixels squared, aspect ratio kept; 0 is the backbone's own size",
        "識別器に入力する画像サイズ（0はバックボーンの既定値）",
        low=0,
        high=4096,
    )
    seed: int = _seed_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.augmentations, self.block_indices  # parse now, so that errors come before models are loaded

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


@dataclass(frozen=True)
class RunConfig(Options):
    """What is read by whoever sets up a run: its adversarial part, sampler, decoder, what is watched and saved.

    Raises:
        ConfigError: a value is out of range; the message names the flag.
    """

    begin: float = option(
        0.92,
        "where the run's adversarial part begins: below 1 a share of the run, from 1 an optimizer step; the warm-up comes just "
        "before it",
        "敵対的学習を始める位置（1未満は全体に対する割合、1以上はステップ数、ウォームアップはその直前）",
        low=0.0,
        high=1_000_000_000.0,
    )
    lr: float = option(
        0.1,
        "learning rate of the adversarial part, as a share of the run's initial one; over its second half it falls to 0; "
        "0 leaves the run's own schedule as it is",
        "敵対的学習中の学習率（初期学習率に対する割合、後半で0まで低下、0は元のスケジュールのまま）",
        low=0.0,
        high=10.0,
    )
    sampler: str = option(
        "auto", "sampler that turns walk with", "展開に使うサンプラー", choices=("auto", "ddim", "euler", "dpm++")
    )
    spacing: str = option(
        "auto",
        "how the sampler's steps are spaced; auto is leading, trailing with zero terminal SNR, sd-scripts' own for flow models",
        "推論グリッドの間隔",
        choices=("auto", "leading", "trailing", "linspace"),
    )
    flow_shift: float = option(
        0.0,
        "shift of a flow model's steps toward noise; 0 is the shift of sd-scripts' own previews",
        "フローモデルの推論グリッドのシフト（0はsd-scriptsのサンプリングと同じ値）",
        low=0.0,
        high=100.0,
    )
    train_text_encoder: bool = option(
        False,
        "turns train the text encoders, too, where the run trains them; needs --adt_memory joined",
        "学習中のテキストエンコーダにも敵対的勾配を流す（--adt_memory joinedが必要）",
    )
    decode_dtype: str = option(
        "auto",
        "precision of decoder and backbone; auto is bf16 where the GPU has it",
        "デコーダとバックボーンの精度",
        choices=("auto", "fp32", "bf16"),
    )
    decoder: str = option(
        OWN_DECODER,
        "what turns latents into images: vae is the run's own decoder; taesd is the tiny one for its model family, from the "
        "hub; a folder holds a tiny autoencoder (TAESD)",
        "潜在変数のデコーダ（vae: 学習モデルのVAE、taesd: ハブの軽量版、フォルダ: 手元の軽量版）",
    )
    disc_weights: str = option(
        NO_WEIGHTS,
        "start with the trained discriminator of a state folder or of its adt_state.safetensors; none starts with a new one",
        "学習済み識別器（stateフォルダまたはadt_state.safetensors、noneは初期値から）",
    )
    max_bad_turns: int = option(
        10,
        "turns in a row with NaN or infinity that end the run, with its state saved; 0 lets it go on",
        "NaNや無限大のターンがこの回数続いたら状態を保存して終了（0で続行）",
        low=0,
        high=1_000_000,
    )
    pictures_every: int = option(
        20,
        "a picture of generated beside real images every N turns; 0 turns it off",
        "Nターンごとに画像を保存（0で無効）",
        low=0,
        high=1_000_000,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.begin > 1 and not self.begin.is_integer():
            raise ConfigError(
                f"--adt_begin must be a share of the run below 1, such as 0.9, or a whole step, such as 1800; got {self.begin}."
            )


@dataclass(frozen=True)
class ADTConfig(RunConfig, DiscriminatorConfig, TurnConfig):
    """Every option, checked. Where each default comes from: docs/method.md.

    It is a `TurnConfig`, a `DiscriminatorConfig` and a `RunConfig` at once: hand it to whatever reads one of them.

    Raises:
        ConfigError: a value is out of range or two values contradict each other; the message names the flag.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.diversity and self.disc_type == "unary":
            raise ConfigError(
                "--adt_diversity compares images with each other, and --adt_disc_type unary judges each by itself: take "
                "siamese, or leave --adt_diversity at 0."
            )


def with_guidance(config: ADTConfig, scale: float) -> ADTConfig:
    """Return options whose `--adt_cfg_scale auto` is settled on a scale, in [1, 50]; as they are where the user chose one."""
    return config if config.cfg_scale != AUTO else replace(config, cfg_scale=f"{scale:g}")


def without_folder(value: str) -> str:
    """Return a hub name as it is, and a local path by its last part: what is saved names no folder of the user's.

    A path may come after a scheme, as in `timm:folder`, which stays.
    """
    scheme, colon, rest = value.partition(":")
    for prefix, path in (("", value), (scheme + colon, rest)):
        if path and Path(path).exists():
            return prefix + Path(path).resolve().name
    return value
