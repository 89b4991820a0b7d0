"""A shared run: a card that the hub takes, no trace of this machine's folders, and a command that is the run's."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml

from common import cli, sharing
from common.cli import RunSettings, to_yaml
from common.errors import RunError, UsageError
from common.files import save_weights
from common.sharing import Card, Figure, Share, halved

METRICS: dict[str, Any] = {
    "accuracy": 0.93,
    "dataset": {"name": "own", "source": "/home/me/own", "images": 9, "train": 4, "validation": 2, "test": 3},
    **{"torch": "2.14", "device": "cpu", "seconds": 61.4, "git_commit": "abc", "extended_from": "/home/me/before"},
}
CARD = Card(
    what="A net.",
    task=("image-classification", "Image classification"),
    data=("me/own", "own"),
    on_hub=True,
    figures=[Figure("accuracy", "test accuracy", 0.93), Figure("mean_reward", "return", "3.00 +/- 1.00")],
    tags=["pruning"],
    load='load("{folder}")',
    limits=["Small: of digits."],
    script="pruning/run.py",
    weights=["net.safetensors", "more.safetensors"],
    pictures=["outcome", "missing"],
    small={"net.safetensors": lambda run: halved(run, "net.safetensors")},
    made_small="In half precision.",
)


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    """Settings of every kind."""

    flip: bool = True
    widths: tuple[int, ...] = (1,)
    kind: Literal["a", "b"] = "a"
    text: str = ""


SETTINGS = Settings(flip=False, widths=(3, 4), kind="b", text="{a: 1}", seed=3, data_dir=Path("/home/me/data"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    save_weights(folder / "checkpoints" / "net.safetensors", {"w": torch.ones(2)})
    (folder / "figures").mkdir()
    (folder / "figures" / "outcome.png").write_bytes(b"png")
    (folder / "config.yaml").write_text(to_yaml(SETTINGS))
    (folder / "checkpoints" / "net.state.pt").write_bytes(b"large")
    return folder


def header_of(card: Path) -> dict[str, Any]:
    """The header as the hub reads it: the YAML between the first two lines of three dashes."""
    first, header, text = card.read_text().split("---\n", 2)
    assert first == ""
    assert text.startswith("\n# ")
    values: dict[str, Any] = yaml.safe_load(header)
    return values


def require_what_the_hub_documents(header: dict[str, Any]) -> None:
    """docs/hub/model-cards and the specification of model-index in huggingface_hub's `modelcard.md`."""
    assert set(header) <= {
        *("license", "library_name", "pipeline_tag", "tags", "datasets", "metrics", "model-index", "language"),
    }
    assert all(isinstance(header[name], str) for name in ("license", "library_name", "pipeline_tag"))
    assert all(isinstance(value, str) for name in ("tags", "metrics") for value in header[name])
    assert all("/" in name for name in header.get("datasets", []))
    for model in header["model-index"]:
        assert isinstance(model["name"], str)
        for result in model["results"]:
            assert result["task"]["type"]
            assert result["dataset"]["type"]
            assert result["dataset"]["name"]
            for metric in result["metrics"]:
                assert isinstance(metric["type"], str)
                assert isinstance(metric["value"], int | float | str)


def test_the_header_is_what_the_hub_documents(run: Path, tmp_path: Path) -> None:
    sharing.share(Share(run, tmp_path / "net", license="cc-by-4.0"), SETTINGS, METRICS, CARD)
    header = header_of(tmp_path / "net" / "README.md")
    require_what_the_hub_documents(header)
    assert header["license"] == "cc-by-4.0"
    assert header["datasets"] == ["me/own"]
    (model,) = header["model-index"]
    assert model["name"] == "net"
    assert [m["value"] for m in model["results"][0]["metrics"]] == [0.93, "3.00 +/- 1.00"]


def test_the_folder_has_what_is_needed_and_no_path_of_this_machine(run: Path, tmp_path: Path) -> None:
    sharing.share(Share(run, tmp_path / "net"), SETTINGS, METRICS, CARD)
    files = {str(path.relative_to(tmp_path / "net")) for path in (tmp_path / "net").rglob("*") if path.is_file()}
    expected = {"README.md", "config.yaml", "metrics.json", "checkpoints/net.safetensors", "figures/outcome.png"}
    assert files == expected
    for name in ("README.md", "config.yaml", "metrics.json"):
        assert "/home" not in (tmp_path / "net" / name).read_text()
    assert json.loads((tmp_path / "net" / "metrics.json").read_text())["accuracy"] == 0.93
    text = (tmp_path / "net" / "README.md").read_text()
    for part in ("A net.", "| test accuracy | 0.9300 |", 'load("net")', "- Small: of digits.", "`before`", "61 s"):
        assert part in text


def test_the_command_asks_for_the_same_settings() -> None:
    words = shlex.split(sharing.command("pruning/run.py", SETTINGS))
    assert words[:2] == ["python", "pruning/run.py"]
    again = cli.parse(Settings, words[2:])
    assert again == dataclasses.replace(SETTINGS, data_dir=None)
    assert sharing.command("x.py", Settings()) == "python x.py"


def test_a_folder_with_files_or_a_run_without_weights_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not empty"):
        sharing.share(Share(run, run), SETTINGS, METRICS, CARD)
    (run / "checkpoints" / "net.safetensors").unlink()
    with pytest.raises(RunError, match="nothing to share"):
        sharing.share(Share(run, tmp_path / "net"), SETTINGS, METRICS, CARD)
    assert not (tmp_path / "net").exists()


def test_a_licence_is_one_that_a_header_can_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.command(lambda options: None, Share, ["run", "folder", "--license", "MIT: mine"])
    assert stop.value.code == 2
    assert "--license MIT: mine" in capsys.readouterr().err
