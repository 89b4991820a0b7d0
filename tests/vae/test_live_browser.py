"""The decoders on the report page in headless Chromium: the same pictures as torch's, by mouse, keys and fingers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.report.command import Report, main
from tests.browser import opened
from tests.vae.planes import fully_connected, run_with_plane
from tests.vae.test_plane import bound
from vae import plane
from vae.distil import own_layers
from vae.models import VAE

pytestmark = pytest.mark.browser

MODELS = {"flat": fully_connected(2, (24, 16), nn.ReLU()), "deep": fully_connected(6, (24, 16), nn.SiLU())}
PRIORS = {"flat": (0.0, 1.0), "deep": (1.0, 2.0)}

READ = """canvas => {  // a copy, since Chromium warns of canvases that are read often
  const copy = Object.assign(document.createElement("canvas"), {width: 28, height: 28});
  const draw = copy.getContext("2d", {willReadFrequently: true});
  draw.drawImage(canvas, 0, 0);
  return [...draw.getImageData(0, 0, 28, 28).data];
}"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with two dimensions under N(0, 1), and one with more under N(1, 2²)."""
    folder = tmp_path_factory.mktemp("results")
    for name, model in MODELS.items():
        run_with_plane(folder / name, model, PRIORS[name])
    return folder


@pytest.fixture(scope="module")
def page(results: Path) -> Path:
    main(Report(results, output=results / "report.html"))
    return results / "report.html"


def place(tab: Any, name: str) -> Any:
    return tab.locator(".latent-plane", has_text=f"{name}.")


def grey(at: Any) -> Tensor:
    """Returns what the page draws, `(784,)`, 0 for white and 1 for black."""
    values = at.locator(".decoded").evaluate(READ)
    pixels = torch.tensor(values).view(784, 4)
    assert pixels[:, 3].eq(255).all()
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    return 1 - pixels[:, 0].double() / 255


def require_torchs(at: Any, model: VAE, code: Tensor, written: float = 0.0) -> None:
    """Checks the page's picture of a code that is known to within `written`, the last digit that the page shows."""
    layers = own_layers(model)
    assert layers is not None
    linears = [of for of in (model.from_code, *model.decoder) if isinstance(of, nn.Linear)]  # type: ignore[misc]
    allowed = bound([of.weight for of in linears], [of.bias for of in linears], layers, code[None])[0]
    near = torch.stack([code - written, code + written])
    true = model.decode(code[None]).sigmoid().flatten().double()
    slack = (model.decode(near).sigmoid().flatten(1).double() - true).abs().amax(0) * 2 if written else 0.0
    assert ((grey(at) - true).abs() <= allowed + 1 / 255 + slack).all()


@pytest.mark.parametrize("name", MODELS)
def test_the_pictures_are_torchs(name: str, results: Path, page: Path, browser: Any) -> None:
    tab, problems = opened(browser, page)
    at = place(tab, name)
    starts = json.loads((results / name / plane.FILE).read_text())["starts"]
    assert len(starts) == 10
    for start in starts:
        at.get_by_role("combobox").select_option(f"a {start['label']}")
        require_torchs(at, MODELS[name], torch.tensor(start["code"]))
    assert problems == []


def test_the_rounding_in_javascript_is_that_in_python(results: Path, page: Path, browser: Any) -> None:
    tab, _ = opened(browser, page)
    for name in MODELS:
        content = plane.read(results / name / plane.FILE)
        expected = content.decode(torch.tensor([content.starts[0].code], dtype=torch.float64))[0]
        assert ((grey(place(tab, name)) - expected).abs() <= 0.5001 / 255).all()


def test_dragging_draws_the_picture_under_the_mouse(results: Path, page: Path, browser: Any) -> None:
    tab, problems = opened(browser, page)
    at = place(tab, "flat")
    at.scroll_into_view_if_needed()
    content = plane.read(results / "flat" / plane.FILE)
    canvas = at.locator(".codes")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    before = grey(at)
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    seen = []
    for across, down in ((0.75, 0.25), (0.2, 0.6)):
        tab.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"], steps=4)
        code = content.reach * torch.tensor([2 * across - 1, 1 - 2 * down])
        shown = [float(text.replace("−", "-")) for text in at.locator(".value").all_inner_texts()]
        assert shown == pytest.approx(code.tolist(), abs=0.02)  # a pixel of the screen
        require_torchs(at, MODELS["flat"], torch.tensor(shown), 0.005)
        seen.append(grey(at))
    tab.mouse.up()
    assert not torch.equal(before, seen[0])
    assert not torch.equal(seen[0], seen[1])
    tab.mouse.move(box["x"] + 5, box["y"] + 5)  # the button is up
    assert torch.equal(grey(at), seen[1])
    assert problems == []


def test_the_ring_is_where_the_code_is(results: Path, page: Path, browser: Any) -> None:
    tab, _ = opened(browser, page)
    at = place(tab, "flat")
    at.get_by_role("application").focus()
    tab.keyboard.press("Shift+ArrowUp")
    content = plane.read(results / "flat" / plane.FILE)
    first, second = (value / content.reach for value in content.starts[0].code)
    across, down = (round(360 * (1 + share)) for share in (first, -second - 5 / 50))
    # The ring has a radius of 13 pixels; without it there would be paper or a point at most of these four places.
    read = "(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data]"
    for x, y in ((13, 0), (-13, 0), (0, 13), (0, -13)):
        assert at.locator(".codes").evaluate(read, [across + x, down + y]) == [0, 0, 0, 255]


def test_a_drag_that_leaves_the_plane_stops_at_its_edge(results: Path, page: Path, browser: Any) -> None:
    tab, _ = opened(browser, page)
    canvas = place(tab, "flat").locator(".codes")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] + 300, box["y"] + box["height"] / 2)
    reach = plane.read(results / "flat" / plane.FILE).reach
    assert place(tab, "flat").locator(".value").first.inner_text() == f"{reach:.2f}"


def test_the_arrow_keys_move_the_point(results: Path, page: Path, browser: Any) -> None:
    tab, problems = opened(browser, page)
    at = place(tab, "flat")
    at.get_by_role("application").focus()
    content = plane.read(results / "flat" / plane.FILE)
    code = torch.tensor(content.starts[0].code)
    scrolled = tab.evaluate("scrollY")
    for key, way in (("ArrowRight", (1, 0)), ("ArrowUp", (0, 1)), ("Shift+ArrowLeft", (-5, 0)), ("ArrowDown", (0, -1))):
        before = grey(at)
        tab.keyboard.press(key)
        code = code + content.reach / 50 * torch.tensor(way)
        require_torchs(at, MODELS["flat"], code)
        assert not torch.equal(grey(at), before)
    told = ", ".join(f"{value:.2f}" for value in code.tolist()).replace("-", "−")
    assert at.get_by_role("status").inner_text() == told
    assert tab.evaluate("scrollY") == scrolled
    assert problems == []


def test_sliders_move_one_dimension_from_a_test_images_code(results: Path, page: Path, browser: Any) -> None:
    tab, problems = opened(browser, page)
    at = place(tab, "deep")
    content = plane.read(results / "deep" / plane.FILE)
    assert at.get_by_role("slider").count() == 4
    assert at.locator(".codes").count() == 0
    at.get_by_role("combobox").select_option("a 3")
    code = torch.tensor(content.starts[3].code)
    for of in content.dimensions:
        handle = at.get_by_role("slider", name=f"dimension {of.index + 1} (KL", exact=False)
        assert (float(handle.get_attribute("min")), float(handle.get_attribute("max"))) == (-5, 7)  # 1 ± 3 · 2
        before = grey(at)
        handle.focus()
        handle.press("ArrowRight")
        handle.press("End")
        code[of.index] = 7
        require_torchs(at, MODELS["deep"], code)
        assert not torch.equal(grey(at), before)
    assert problems == []


def test_what_a_screen_reader_is_told(page: Path, browser: Any) -> None:
    tab, _ = opened(browser, page)
    for name in MODELS:
        group = place(tab, name).get_by_role("group", name=f"The decoder of {name}")
        assert group.get_by_role("img", name="What the decoder makes of").count() == 1
        for slider in group.get_by_role("slider").all():
            assert slider.get_attribute("aria-valuetext")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_black_ink_on_white_in_both_colour_schemes(scheme: str, page: Path, browser: Any) -> None:
    tab, _ = opened(browser, page, color_scheme=scheme)
    for canvas in tab.locator(".latent-plane canvas").all():
        assert canvas.evaluate("c => getComputedStyle(c).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.locator(".decoded").first.evaluate("c => getComputedStyle(c).imageRendering") == "pixelated"


def test_on_a_phone_nothing_scrolls_sideways_and_a_finger_moves_the_point(
    results: Path, page: Path, browser: Any
) -> None:
    tab, problems = opened(browser, page, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    at = place(tab, "flat")
    canvas = at.locator(".codes")
    assert canvas.evaluate("c => getComputedStyle(c).touchAction") == "none"
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box["width"] == pytest.approx(box["height"], abs=1)
    before = grey(at)
    tab.touchscreen.tap(box["x"] + 0.8 * box["width"], box["y"] + 0.3 * box["height"])
    assert not torch.equal(grey(at), before)
    code = plane.read(results / "flat" / plane.FILE).reach * torch.tensor([2 * 0.8 - 1, 1 - 2 * 0.3])
    shown = [float(text.replace("−", "-")) for text in at.locator(".value").all_inner_texts()]
    assert shown == pytest.approx(code.tolist(), abs=0.04)  # a pixel of the screen
    require_torchs(at, MODELS["flat"], torch.tensor(shown), 0.005)
    assert problems == []


def test_without_javascript_the_pictures_stand_there(page: Path, browser: Any) -> None:
    tab, _ = opened(browser, page, java_script_enabled=False)
    assert tab.locator(".latent-plane details[open] img").count() == 2
    assert tab.locator(".latent-plane details[open] img").first.is_visible()
    assert tab.locator(".latent-plane canvas").count() == 0
    with_it, _ = opened(browser, page)
    assert with_it.locator(".latent-plane details[open]").count() == 0
