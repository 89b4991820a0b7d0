"""A trained VAE is sampled, encoded, reconstructed and loaded: the very images and codes of its run."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common import cli, data
from common.data import Dataset
from common.errors import UsageError
from vae import bounds, classifier, load, samplers
from vae.sample import Sample, main
from vae.settings import Settings
from vae.train import main as train

pytestmark = pytest.mark.slow  # three trainings
SMALL = ["--dataset", "digits", "--arch", "fc", "--hidden", "32", "--epochs", "1", "--generated", "100"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, own_cache: None) -> Path:
    """Three finished runs of small models: plain, conditional, and with a learned prior."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "EPOCHS", 1)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for name, *own in (
            ("plain", "--prior", "gaussian12"),
            ("conditional", "--conditional"),
            ("vamp", "--prior", "vamp", "--pseudo-inputs", "5"),
        ):
            short = [*SMALL, "--latent", "3", "--nll-samples", "1", "--seed", "7", *own]
            cli.run(train, Settings, [*short, "--run-name", name, "--results-dir", str(folder)])
    return folder / "vae"


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.load("digits", task_default="mnist", shape=(1, 28, 28), data_dir=None, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def pictures(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two folders of images."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(digits.test.images[:5]):
        (folder / f"{number % 2}").mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / f"{number % 2}" / f"image{number}.png")
    return folder


def sample(capsys: pytest.CaptureFixture[str], *arguments: object) -> Path:
    capsys.readouterr()
    cli.command(main, Sample, [str(argument) for argument in arguments])
    return Path(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("name", ["plain", "conditional", "vamp"])
@pytest.mark.parametrize("sampler", ["prior", "mixture"])
def test_samples_are_those_of_the_run(runs: Path, name: str, sampler: str, digits: Dataset) -> None:
    """The judge's figures of a hundred samples with the run's seed are those in metrics.json."""
    trained = load(runs / name)
    images = trained.sample(100, sampler=sampler, seed=7)  # type: ignore[arg-type]
    quality = json.loads((runs / name / "metrics.json").read_text())["quality"][f"{sampler} samples"]
    space = classifier.FeatureSpace.of(
        classifier.RandomConvolutions()(classifier.drawn(digits.test, 100).images.float() / 255)
    )
    found = space.compare(classifier.RandomConvolutions()(images))
    assert {
        f"random_{name}": pytest.approx(value, rel=1e-4) for name, value in found.items()
    }.items() <= quality.items()


def test_floats_outside_0_and_1_are_refused(runs: Path) -> None:
    with pytest.raises(UsageError, match="must lie in"):
        load(runs / "plain").encode(torch.full((1, 1, 28, 28), 200.0))


def test_another_seed_gives_other_images_and_the_same_seed_the_same(runs: Path) -> None:
    trained = load(runs / "plain")
    assert torch.equal(trained.sample(4, seed=1), trained.sample(4, seed=1))
    assert not torch.equal(trained.sample(4, seed=1), trained.sample(4, seed=2))


def test_codes_and_reconstructions_are_those_of_the_model(runs: Path, digits: Dataset) -> None:
    trained, images = load(runs / "plain"), digits.test.images[:6]
    means, _ = bounds.posterior_means(trained.model, images)
    torch.testing.assert_close(trained.encode(images), means)
    torch.testing.assert_close(trained.encode(images.float() / 255), means)
    torch.testing.assert_close(trained.reconstruct(images), bounds.decoded(trained.model, means))
    line = trained.interpolate(images[:1], images[1:2], steps=3)
    torch.testing.assert_close(line[1:2], trained.decode(means[:2].mean(0, keepdim=True)))
    torch.testing.assert_close(line[[0, 2]], trained.reconstruct(images[:2]))


def test_a_conditional_model_makes_the_class_that_is_asked_for(runs: Path) -> None:
    """The codes do not know the class: each class decodes the same ones."""
    trained = load(runs / "conditional")
    codes = samplers.prior_codes(trained.settings.prior_of(trained.model), 5, 3, 0)
    for label in (0, 9):
        expected = bounds.decoded(trained.model, codes, torch.full((5,), label))
        torch.testing.assert_close(trained.sample(5, label=label), expected)
    assert len(trained.classes) == 10


def test_a_sheet_a_folder_and_codes_are_written(
    runs: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = sample(capsys, runs / "plain", "--count", 12, "--out", tmp_path / "s.png")
    assert Image.open(sheet).size == (10 * 30, 2 * 30)
    folder = sample(capsys, runs / "plain", "--count", 12, "--out", tmp_path / "samples")
    assert sorted(path.name for path in folder.iterdir()) == [f"{n:02d}.png" for n in range(12)]
    assert Image.open(folder / "00.png").size == (28, 28)
    expected = load(runs / "plain").sample(12)[3, 0].mul(255).round().numpy()
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "03.png")), expected)
    assert Image.open(sample(capsys, runs / "plain", "--reconstruct", pictures, "--out", tmp_path / "r.png")).size == (
        5 * 30,
        2 * 30,
    )
    single = sample(capsys, runs / "plain", "--reconstruct", pictures, "--out", tmp_path / "reconstructed")
    assert (single / "1" / "image3.png").is_file()
    shutil.copytree(pictures / "0", tmp_path / "alike")
    for source, name in (("image0.png", "scan.1.png"), ("image2.png", "scan.2.png"), ("image0.png", "image0.bmp")):
        Image.open(pictures / "0" / source).save(tmp_path / "alike" / name)
    alike = sample(capsys, runs / "plain", "--reconstruct", tmp_path / "alike", "--out", tmp_path / "others")
    assert {path.name for path in alike.iterdir()} == {
        *("image0.bmp.png", "image0.png.png", "image2.png", "image4.png", "scan.1.png", "scan.2.png"),
    }
    strip = sample(
        *(capsys, runs / "plain", "--interpolate", pictures / "0" / "image0.png", pictures / "1" / "image1.png"),
        *("--out", tmp_path / "i.png"),
    )
    assert Image.open(strip).size == (300, 30)


@pytest.mark.parametrize("ending", ["csv", "npz"])
def test_codes_of_files_are_named_after_them(
    runs: Path, pictures: Path, digits: Dataset, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sample(capsys, runs / "plain", "--encode", pictures, "--out", tmp_path / f"codes.{ending}")
    names = ["0/image0.png", "0/image2.png", "0/image4.png", "1/image1.png", "1/image3.png"]
    expected = load(runs / "plain").encode(digits.test.images[[0, 2, 4, 1, 3]]).numpy()
    if ending == "npz":
        archive = np.load(path)
        assert archive["names"].tolist() == names
        np.testing.assert_allclose(archive["codes"], expected, rtol=1e-5)
    else:
        rows = list(csv.DictReader(path.open()))
        assert [row["file"] for row in rows] == names
        written = [[float(row[f"z{d}"]) for d in (1, 2, 3)] for row in rows]
        np.testing.assert_allclose(written, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["{runs}/plain", "--class", "3"], 2, "--class 3: {runs}/plain is no conditional model"),
        (["{runs}/conditional", "--class", "10"], 2, "--class 10: {runs}/conditional knows the classes 0 to 9"),
        (["{runs}/conditional", "--encode", "{pictures}"], 2, "needs the class of each image"),
        (["{runs}/conditional", "--encode", "{pictures}", "--class", "-1"], 2, "--class -1"),
        (["{runs}/plain", "--encode", "{pictures}", "--class", "1"], 2, "no conditional model"),
        (["{runs}/plain", "--count", "0"], 2, "--count 0"),
        (["{runs}/plain", "--out", "samples.jpg"], 2, "the name of a sheet ends in .png"),
        (["{runs}/plain", "--encode", "{pictures}", "--out", "codes.txt"], 2, ".csv or .npz"),
        (["{runs}/plain", "--encode", "{pictures}", "--reconstruct", "{pictures}"], 2, "one at a time"),
        (["{runs}/plain", "--encode", "{pictures}", "--count", "3"], 2, "--count with --encode: no effect"),
        (["{runs}/plain", "--resize"], 2, "--resize: no images are given"),
        (["{runs}/plain", "--out", "{pictures}"], 2, "a folder with files; choose another"),
        (["{runs}/plain", "--interpolate", "{pictures}", "{pictures}"], 2, "a folder; give two images"),
        (["{runs}/plain", "--encode", "nowhere"], 2, "nowhere: no such file or folder"),
        (["{runs}/plain/config.yaml"], 2, "config.yaml: a file; give the run's folder"),
        (["{runs}"], 1, "no finished run (metrics.json is missing)"),
        (["no/such"], 2, "no/such: no such folder"),
    ],
)
def test_bad_input(
    runs: Path, pictures: Path, arguments: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.command(main, Sample, [argument.format(runs=runs, pictures=pictures) for argument in arguments])
    assert stopped.value.code == status
    assert told.format(runs=runs) in capsys.readouterr().err.splitlines()[-1]
    assert not list(Path().glob("samples.*")) + list(Path().glob("codes.*"))


def test_loaded_as_the_docs_say(runs: Path, pictures: Path) -> None:
    """In a fresh process."""
    program = (
        f"from vae import load; model = load({str(runs / 'plain')!r}); images = model.sample(16, seed=1);"
        "codes = model.encode(images); print(model.decode(codes).shape, model.reconstruct(images).shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[0] == "torch.Size([16, 1, 28, 28]) torch.Size([16, 1, 28, 28])", done.stderr
