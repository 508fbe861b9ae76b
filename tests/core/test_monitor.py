"""Rows and pictures on disk."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from adt_plugin.core.report import TurnReport
from adt_plugin.core.run.monitor import IN_BAR, MAX_PAIRS, Monitor, pair_picture, scalars
from adt_plugin.core.run.strip import panel, shortened
from toys import ToyDenoiser, diffusion_backward, toy_latents, toy_turn


def reports(count: int, **options: object) -> list[TurnReport]:
    turn, net = toy_turn(**options), ToyDenoiser()
    result = []
    for _ in range(count):
        diffusion_backward(turn, net, toy_latents())
        result.append(turn(net, toy_latents()))
    return result


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "x-adt.jsonl").read_text().splitlines()]


def test_a_row_per_turn_after_a_row_for_the_run(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "new", "x", 0, {"ss_adt_steps": "5"})
    for step, report in enumerate(reports(3)):
        monitor.record(report, step)
    run, *turns = rows(tmp_path / "new")
    assert run["event"] == "run" and run["ss_adt_steps"] == "5"
    assert [(row["turn"], row["step"]) for row in turns] == [(1, 0), (2, 1), (3, 2)]
    assert all(
        {"loss_g", "loss_d", "score_real", "score_gen", "grad_norm", "start", "step_grad_norms"} <= set(row) for row in turns
    )


def test_runs_of_one_name_share_no_file(tmp_path: Path) -> None:
    """The second begins while the first is at work."""
    monitors = [Monitor(tmp_path, "x", 1, {}) for _ in range(3)]
    for monitor, report in zip(monitors, reports(3), strict=True):
        report.turn = 1
        monitor.record(report, 0)
    stems = ["x-adt", "x-adt-run2", "x-adt-run3"]
    assert [monitor.stem for monitor in monitors] == stems
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{stem}{end}" for stem in stems for end in (".jsonl", "-000001.png")
    )
    assert all(len((tmp_path / f"{stem}.jsonl").read_text().splitlines()) == 2 for stem in stems)


@pytest.mark.parametrize("earlier", [1, 3])
def test_a_run_that_resumes_goes_on_in_the_latest_rows(tmp_path: Path, earlier: int) -> None:
    names = [Monitor(tmp_path, "x", 0, {}).rows for _ in range(earlier)]
    resumed = Monitor(tmp_path, "x", 0, {}, resumes=True)
    resumed.record(reports(1)[0], 0)
    assert resumed.rows == names[-1] and sorted(tmp_path.iterdir()) == sorted(names)
    assert [json.loads(row)["event"] for row in names[-1].read_text().splitlines()] == ["run", "run", "turn"]


def test_a_run_that_resumes_into_an_empty_folder_begins_its_own(tmp_path: Path) -> None:
    assert Monitor(tmp_path, "x", 0, {}, resumes=True).rows == tmp_path / "x-adt.jsonl"


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    report = reports(1)[0]
    report.grad_norm, report.step_grad_norms = float("nan"), [1.0, float("inf")]
    Monitor(tmp_path, "x", 0, {}).record(report, 0)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    row = json.loads((tmp_path / "x-adt.jsonl").read_text().splitlines()[1], parse_constant=refuse)
    assert (row["grad_norm"], row["step_grad_norms"]) == (None, [1.0, None])


def test_a_picture_every_n_turns(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, "x", 2, {})
    paths = [monitor.record(report, 0) for report in reports(4)]
    assert [path and path.name for path in paths] == [None, "x-adt-000002.png", None, "x-adt-000004.png"]
    assert sorted(tmp_path.glob("*.png")) == [path for path in paths if path]


def test_zero_means_no_pictures(tmp_path: Path) -> None:
    assert Monitor(tmp_path, "x", 0, {}).record(reports(1)[0], 0) is None


def test_generated_images_stand_above_real_ones() -> None:
    gen, real = torch.full((2, 3, 64, 80), -1.0), torch.full((2, 3, 64, 80), 1.0)
    picture = pair_picture(gen, real, torch.tensor([[0.5, -0.5], [1.0, 2.0]]), 4)
    assert picture.size == (160, 2 * 64 + 3 * 14)
    assert picture.getpixel((100, 28 + 32)) == (0, 0, 0)
    assert picture.getpixel((100, 28 + 64 + 14 + 32)) == (255, 255, 255)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, int], str]]:
    """What is written on pictures, and where."""
    texts: list[tuple[tuple[int, int], str]] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda draw, place, text, **how: texts.append((place, text)))
    return texts


def test_each_pair_has_the_start_and_both_scores(drawn: list[tuple[tuple[int, int], str]]) -> None:
    images = torch.zeros(2, 3, 64, 64)
    pair_picture(images, images, torch.tensor([[0.125, -0.5], [1.0, 2.0]]), 4)
    places = [(left + 2, top + 1) for left in (0, 64) for top in (0, 14, 28 + 64)]
    assert drawn == list(zip(places, ["start 4", "gen +0.12", "real +1.00", "start 4", "gen -0.50", "real +2.00"], strict=True))


def test_a_turns_own_scores_and_start_are_on_its_picture(tmp_path: Path, drawn: list[tuple[tuple[int, int], str]]) -> None:
    report = reports(1)[0]
    Monitor(tmp_path, "x", 1, {}).record(report, 0)
    (gen, real), texts = report.pairs.tolist(), [text for _, text in drawn]
    assert texts[:3] == [f"start {report.start}", f"gen {gen[0]:+.2f}", f"real {real[0]:+.2f}"]
    assert [sum(gen) / len(gen), sum(real) / len(real)] == pytest.approx([report.score_gen, report.score_real])


def test_small_grey_images_are_enlarged_and_many_pairs_are_cut() -> None:
    images = torch.zeros(12, 1, 16, 16)
    assert pair_picture(images, images, torch.zeros(2, 12), 1).size == (MAX_PAIRS * 64, 2 * 64 + 3 * 14)


def test_values_outside_the_range_are_clipped() -> None:
    wild = torch.tensor([-9.0, 9.0, float("nan")]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    assert pair_picture(wild, wild, torch.zeros(2, 1), 1).getpixel((32, 60)) == (0, 255, 128)


@pytest.mark.parametrize(
    ("caption", "line"),
    [
        ("a cat", "a cat"),
        ("a cat,\n on a  mat", "a cat, on a mat"),
        ("a" * 40, "a" * 40),
        ("a red fox in deep snow, looking back, trees", "a red fox in deep snow, looking back..."),
        ("\u732b, cat", "?, cat"),
    ],
)
def test_a_caption_has_room_in_a_panel(caption: str, line: str) -> None:
    assert shortened(caption) == line
    panel(torch.zeros(1, 3, 8, 8), [line])


def test_pictures_are_readable_files(tmp_path: Path) -> None:
    path = Monitor(tmp_path, "x", 1, {}).record(reports(1)[0], 0)
    with Image.open(path) as picture:
        picture.verify()


def test_a_disk_that_refuses_ends_the_writing_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file, where a folder is needed")
    with caplog.at_level(logging.WARNING):
        monitor = Monitor(occupied, "x", 1, {})
        assert [monitor.record(report, 0) for report in reports(2)] == [None, None]
    assert len(caplog.records) == 1


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("name", ["x-adt.jsonl", "x-adt-000001.png"])
def test_a_full_disk_ends_the_writing_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    (tmp_path / name).symlink_to(FULL)
    with caplog.at_level(logging.WARNING):
        monitor = Monitor(tmp_path, "x", 1, {})
        assert [monitor.record(report, 0) for report in reports(3)] == [None, None, None]
    assert len(caplog.records) == 1 and "No space left on device" in caplog.text


NAMES = ("loss_g", "loss_d", "score_real", "score_gen", "grad_norm", "start", "distance")


def test_the_numbers_for_bar_and_trackers_carry_their_prefix() -> None:
    """Those that are not there yet are left out: some trackers stop at a NaN."""
    report = reports(1)[0]
    by_start = f"adt/distance/start_{report.start}"
    assert set(scalars(report)) == {f"adt/{name}" for name in NAMES} | {by_start}
    report.kid, report.spread = 0.5, 1.0
    assert set(scalars(report)) == {f"adt/{name}" for name in (*NAMES, "kid", "spread")} | {by_start}
    assert scalars(report)[by_start] == report.distance and set(IN_BAR) < set(scalars(report))
