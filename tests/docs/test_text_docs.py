"""The commands and the code of docs/text.md are run as they stand there."""

import re
import shlex
import shutil
import tomllib
from pathlib import Path

from latentq import LatentDataset, Recipe
from latentq.cli.main import main
from latentq.sharding.pipeline import shards
from support.archive_making import make_tar, pictures_of, with_captions
from support.text_making import save_open_clip

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "text.md").read_text()


def blocks(language):
    return "".join(re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


def test_every_block_of_the_page_runs(tiny_vae, tiny_clip, tiny_t5, tmp_path, monkeypatch, capsys):
    (tmp_path / "cc12m").mkdir()
    make_tar(tmp_path / "cc12m" / "0.tar", with_captions(pictures_of(tmp_path / "pictures", 3, (300, 280))))
    shards(tmp_path / "cc12m" / "0.tar", tmp_path / "cc12m-mds")
    # Folders of the Hub's names are found before the Hub is asked.
    shutil.copytree(tiny_vae, tmp_path / "stabilityai" / "stable-diffusion-xl-base-1.0" / "vae")
    save_open_clip(tmp_path / "apple" / "DFN5B-CLIP-ViT-H-14-378", width=1024, heads=16, layers=1, mlp_ratio=0.1)
    for name, folder in (("vae", tiny_vae), ("clip", tiny_clip), ("t5", tiny_t5)):
        shutil.copytree(folder, tmp_path / "models" / name)
    monkeypatch.chdir(tmp_path)
    for line in blocks("sh").splitlines():
        program, *arguments = shlex.split(line)
        assert program == "latentq"
        assert main(arguments) == 0, line
    capsys.readouterr()
    exec(blocks("python"), {})
    assert LatentDataset("cc12m-latents")[0]["caption_embedding"].shape == (1, 77, 1024)
    assert LatentDataset("cc12m-t5")[0]["attention_mask"].shape == (1, 40)
    recipe = Recipe.from_dict(tomllib.loads(blocks("toml")))
    assert Recipe.from_dict(recipe.to_dict()) == recipe
