"""The pictures of the README and of the pages: written by a command, shown light and dark, and a difference is seen."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

import gennorm as gn
from gennorm.drawing.scene import COLOURS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def images():
    spec = importlib.util.spec_from_file_location("docs_cubes", ROOT / "docs" / "cubes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_are_up_to_date(images, tmp_path, capsys):
    assert images.main(["--check"]) == 0
    copy = tmp_path / "images"
    shutil.copytree(images.IMAGES, copy)
    changed = copy / "tiles-dark.svg"
    changed.write_text(changed.read_text(encoding="utf-8").replace("#", "##", 1), "utf-8")
    (copy / "cube-light.svg").unlink()
    (copy / "old-norm-light.svg").write_text("<svg/>")
    assert images.main(["--check"], copy) == 1
    assert capsys.readouterr().err == (
        "docs/images is out of date: cube-light.svg, old-norm-light.svg, tiles-dark.svg: python docs/cubes.py --write\n"
    )
    (copy / "old-norm-light.svg").unlink()
    images.main(["--write"], copy)
    assert images.main(["--check"], copy) == 0


def test_every_picture_is_shown_light_and_dark(images):
    readme, first, page = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/index.md", "docs/drawing.md")
    )
    for name in {**images.KNOWN, **images.UNNAMED}:
        assert f'srcset="docs/images/{name}-dark.svg"><img src="docs/images/{name}-light.svg"' in readme
        assert re.search(rf"\(images/{name}-light\.svg#only-light\).*\(images/{name}-dark\.svg#only-dark\)", first)
    for name in images.EXPLAINED:
        assert f"(images/{name}-light.svg#only-light)" in page
        assert f"(images/{name}-dark.svg#only-dark)" in page


def test_titles_say_what_is_drawn(images):
    """The unnamed ones have their levels and groups as the title, and no picture has more slices than colours."""
    for title, call, *_ in images.UNNAMED.values():
        config = eval(call, {"gn": gn}).to_config()
        levels, groups = eval(title) if title.endswith("}") else (eval(title), {})
        assert levels == config["aggregation_levels"]
        assert {str(level): number for level, number in groups.items()} == (config["group_number"] or {})
    for shown in {**images.KNOWN, **images.UNNAMED}.values():
        assert images.described(shown).count <= len(COLOURS)
