"""Runs the commands and code of docs/sources.md."""

import json
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from latentq.cli.main import main
from latentq.store.objects import ObjectStore
from support.archive_making import make_tar, make_zip, pictures_of, with_captions

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sources.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_every_code_block_of_the_page_runs(tmp_path, s3, monkeypatch, capsys):
    pictures = pictures_of(tmp_path / "pictures", 3, (300, 280))
    for folder in ("cc12m", "jdb", "diffdb", "textcaps"):
        (tmp_path / folder).mkdir()
    make_tar(tmp_path / "cc12m" / "0.tar", [*with_captions(pictures)])
    make_tar(tmp_path / "cc12m" / "1.tar", [*with_captions(pictures_of(tmp_path / "large", 2, (600, 520)))])
    make_tar(tmp_path / "jdb" / "000.tgz", [(f"000/{name}", data) for name, data in pictures.items()], "w:gz")
    rows = [json.dumps({"img_path": f"./000/{name}", "prompt": name}) for name in pictures]
    (tmp_path / "jdb" / "train_anno.jsonl").write_text("\n".join(rows))
    make_zip(tmp_path / "diffdb" / "part-1.zip", pictures.items())
    names = list(pictures)
    metadata = {"image_name": names, "prompt": names, "image_nsfw": [0.0, 0.5, 0.1], "prompt_nsfw": [0.0, 0.0, 0.1]}
    pq.write_table(pa.table(metadata), tmp_path / "diffdb" / "metadata.parquet")
    images = [{"bytes": data, "path": name} for name, data in pictures.items()]
    table = pa.table({"image": images, "image_id": names, "reference_strs": [[name] for name in names]})
    pq.write_table(table, tmp_path / "textcaps" / "train.parquet")
    store = ObjectStore(s3)
    for path in [*tmp_path.glob("cc12m/*"), *tmp_path.glob("diffdb/*")]:
        store.put(path.relative_to(tmp_path).as_posix(), path)
    for name, data in pictures.items():
        store.put(f"imagenet/train/n01440764/{name}", data)
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks("sh")).replace("s3://bucket/", f"{s3}/").splitlines():
        program, *arguments = shlex.split(line)
        assert program == "latentq"
        assert main(arguments) == 0, line
    capsys.readouterr()
    exec("".join(blocks("python")), {})
    assert capsys.readouterr().out == f"0.tar/000.jpg picture 000.jpg {len(pictures['000.jpg'])}\n1\n"
