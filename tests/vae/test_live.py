"""The decoders on the report page: which ones, what damage does, and that a page with them stays small and safe."""

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from common.report.command import Report, main
from common.report.folders import find
from tests.vae.planes import fully_connected, run_with_plane
from vae import live, plane

GAUSSIAN12 = (1.0, 2.0)


def report(results: Path, form: Any = "html") -> str:
    output = results / f"page.{form}"
    main(Report(results, form, output))
    return output.read_text()


def aged(run: Path, seconds: int) -> Path:
    """Makes the run's decoder that much older."""
    os.utime(run / plane.FILE, (1e9 - seconds, 1e9 - seconds))
    return run


def test_the_newest_of_each_kind_under_each_named_prior(tmp_path: Path) -> None:
    plane2, plane3 = fully_connected(2, (4,), nn.ReLU()), fully_connected(3, (4,), nn.ReLU())
    aged(run_with_plane(tmp_path / "a", plane2), 10)
    aged(run_with_plane(tmp_path / "b", plane2), 0)
    aged(run_with_plane(tmp_path / "c", plane2), 20)
    aged(run_with_plane(tmp_path / "d", plane2, GAUSSIAN12), 30)
    aged(run_with_plane(tmp_path / "e", plane3), 10)
    aged(run_with_plane(tmp_path / "f", fully_connected(4, (4,), nn.ReLU())), 0)
    aged(run_with_plane(tmp_path / "g", plane3, GAUSSIAN12), 0)
    aged(run_with_plane(tmp_path / "h", plane2, (0.0, 0.5)), 0)  # no named prior
    aged(run_with_plane(tmp_path / "unfinished", plane2), -10)
    (tmp_path / "unfinished" / "metrics.json").unlink()
    (aged(run_with_plane(tmp_path / "older", plane2), -20) / plane.FILE).unlink()
    assert {folder.name for folder, _ in live.newest(find(tmp_path))} == {"b", "d", "f", "g"}
    text = report(tmp_path)
    assert text.count('<div class="latent-plane">') == 4
    script, style = (Path("vae", f"plane.{kind}").read_text() for kind in ("js", "css"))
    assert (text.count(script), text.count(style)) == (1, 1)


def test_a_run_under_a_learned_prior_has_no_decoder_and_is_not_damaged(tmp_path: Path) -> None:
    run = run_with_plane(tmp_path / "learned", fully_connected(2, (4,), nn.ReLU()), prior_mean=None, prior_std=None)
    (run / plane.FILE).unlink()
    folders = find(tmp_path)
    assert live.newest(folders) == []
    assert [folder.finished for folder in folders] == [True]
    assert '<div class="latent-plane">' not in report(tmp_path)


def test_the_title_says_which_bound_the_model_was_trained_on(tmp_path: Path) -> None:
    run_with_plane(tmp_path / "bound", fully_connected(2, (4,), nn.ReLU()), objective="iwae")
    ((_, model),) = live.newest(find(tmp_path))
    assert "IWAE, 2 dimensions" in model.title


def test_the_largest_takes_less_than_500_kb(tmp_path: Path) -> None:
    run = run_with_plane(tmp_path / "run", fully_connected(2, (400,), nn.ReLU()))
    content = json.loads((run / plane.FILE).read_text())
    content["labels"] = "9" * 2000
    content["points"] = base64.b64encode(bytes(2000 * 8)).decode()
    text = json.dumps(content, separators=(",", ":"))
    (run / plane.FILE).write_text(text + " " * (plane.LIMIT - len(text)))
    (found,) = re.findall(r'<script type="application/json">.*?</script>', report(tmp_path), re.DOTALL)
    assert 440_000 < len(found) < 500_000


@pytest.mark.parametrize("latent", [2, 3])
def test_damage_is_named_and_the_picture_stays(latent: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_with_plane(tmp_path / "vae" / "broken", fully_connected(latent, (4,), nn.ReLU()))
    (run / plane.FILE).write_text('{"version":1,"prior_mean":"<b>')
    text = report(tmp_path)
    assert '<p class="warning">vae/broken: plane.json is damaged (' in text
    assert "latent-plane" not in text
    assert ("The latent plane at" if latent == 2 else "One test image&#x27;s code") in text
    assert "vae/broken: plane.json is damaged" in capsys.readouterr().err
    assert "1 run, 1 of them finished." in text  # the run itself is not damaged


@pytest.mark.parametrize("changes", [{"latent": 3}, {"prior_mean": 1.0, "prior_std": 2.0}])
def test_the_decoder_of_another_model_is_not_shown(changes: dict[str, Any], tmp_path: Path) -> None:
    run_with_plane(tmp_path / "run", fully_connected(2, (4,), nn.ReLU()), **changes)
    text = report(tmp_path)
    assert "not of this run&#x27;s model" in text
    assert "latent-plane" not in text


def test_the_name_of_a_run_is_no_html(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>&\"'"
    run_with_plane(tmp_path / name, fully_connected(2, (4,), nn.ReLU()))
    text = report(tmp_path)
    assert "<img src=x" not in text
    (found,) = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert "<" not in found
    assert json.loads(found)["title"] == f"The decoder of {name}"


def test_the_caption_says_whether_it_is_a_copy_and_how_close(tmp_path: Path) -> None:
    run = run_with_plane(tmp_path / "run", fully_connected(2, (4,), nn.ReLU()))
    content = json.loads((run / plane.FILE).read_text()) | {"copied": True, "error": 0.0123}
    (run / plane.FILE).write_text(json.dumps(content))
    text = report(tmp_path)
    assert "a small copy that learned the decoder" in text
    assert "by 1.23 % of the range" in text


def test_markdown_has_the_picture_alone(tmp_path: Path) -> None:
    run_with_plane(tmp_path / "run", fully_connected(2, (4,), nn.ReLU()))
    text = report(tmp_path, "md")
    assert "![The latent plane at" in text
    assert "levels" not in text
    assert "latent-plane" not in text


def test_the_script_cannot_end_early() -> None:
    script, style = (Path("vae", f"plane.{kind}").read_text() for kind in ("js", "css"))
    assert "</script" not in script
    assert "<!--" not in script
    assert "</style" not in style
