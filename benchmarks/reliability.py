"""What is lost when a machine fails or a file is damaged?

python benchmarks/reliability.py [--trials 300] [--seed 0] [--only "kill train"] [--first 0] [--keep FOLDER]

Each campaign does one kind of harm to commands of `mmcl` on a small corpus, and looks at what is left:

kill        SIGKILL at a random file-system event (half of the trials) or moment; the same command again must complete
            what was begun with the bytes of a run that was left alone, and leave no temporary file
signal      SIGINT or SIGTERM at a random moment, likewise; SIGINT ends in one line
full disk   a file system with less space than needed; one line, and the same command completes once there is space
damaged     a file with flipped, missing, doubled or foreign bytes, or other values: what is sound is used, or one line
            says what is wrong; no traceback, no crash, no run without end, and no other result without a word
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from commands import COMMANDS, ROWS, WORDS, Corpus, results
from faults import Cut, Outcome, damage_file, may_mount, run, small_disk
from measure import report

IMPORTED = (
    *("datasets", "faiss", "pyarrow.dataset", "timm", "torch", "transformers.models.bert.modeling_bert"),
    *("mmcl.cli.app", "mmcl.data.check", "mmcl.encoding", "mmcl.formats.export", "mmcl.reports", "mmcl.retrieval"),
    "mmcl.training.loop",
)


class Failed(Exception):  # noqa: N818
    """What a trial must not do."""


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise Failed(what)


def completes(corpus: Corpus, name: str, out: Path) -> None:
    """The same command again: it ends well, with the same results, and leaves nothing behind."""
    if name == "export" and out.exists():  # is never replaced, so it has to be whole
        same(corpus, name, out)
        return
    again = corpus.run(name, out)
    if again.code == 2 and name == "train" and not list((out / "checkpoints").glob("step-*")):
        shutil.rmtree(out, ignore_errors=True)  # nothing was lost, and it said so
        again = corpus.run(name, out)
    expect(again.code == 0, f"again: exit code {again.code}: {again.stderr.strip()[-300:]}")
    same(corpus, name, out)
    left = [path for path in out.parent.rglob("*") if path.name.endswith((".part", ".old"))]
    expect(not left, f"left behind: {', '.join(str(path.relative_to(out.parent)) for path in left)}")


def same(corpus: Corpus, name: str, out: Path) -> None:
    found, wanted = results(name, out), corpus.reference[name]
    expect(found.keys() == wanted.keys(), f"other files: {sorted(found)} instead of {sorted(wanted)}")
    different = [file for file in wanted if found[file] != wanted[file]]
    expect(not different, f"other bytes in {', '.join(different)}")


def well_said(done: Outcome) -> None:
    if wrong := done.said_badly():
        raise Failed(wrong)


def kill(name: str, corpus: Corpus, folder: Path, random: random.Random) -> None:
    out = folder / name
    corpus.begin(name, out)
    for _ in range(random.choice((1, 1, 2))):
        if random.random() < 0.5:
            cut = Cut(event=random.randint(1, corpus.events[name]))
        else:
            cut = Cut(after=random.uniform(0, corpus.seconds[name]))
        done = corpus.run(name, out, cut=cut)
        expect(done.code in (0, -signal.SIGKILL), f"exit code {done.code}: {done.stderr.strip()[-300:]}")
        if name == "export" and out.exists():  # which is never replaced
            break
    if name == "index":
        info = run("index", "info", out)
        expect(info.code == 0, f"neither the old index nor the new one: {info.stderr.strip()}")
    completes(corpus, name, out)


def interrupt(name: str, corpus: Corpus, folder: Path, random: random.Random) -> None:
    out = folder / name
    sent = random.choice((signal.SIGINT, signal.SIGTERM))
    done = corpus.run(name, out, cut=Cut(after=random.uniform(0, corpus.seconds[name]), signal=sent))
    ends = (0, 130) if sent == signal.SIGINT else (0, 130, 143, -signal.SIGTERM)
    expect(done.code in ends, f"exit code {done.code} after {sent.name}: {done.stderr.strip()[-300:]}")
    expect("Traceback" not in done.stderr, f"a traceback after {sent.name}: {done.stderr.strip()[-300:]}")
    completes(corpus, name, out)


def full_disk(name: str, corpus: Corpus, folder: Path, random: random.Random) -> None:
    before = corpus.kilobytes["index"] if name == "index" else 0
    needed = corpus.kilobytes[name]
    with small_disk(64 + before + random.randint(0, 2 * needed)) as (disk, make_space):
        out = disk / name
        corpus.begin(name, out)
        done = corpus.run(name, out)
        if done.code != 0:
            well_said(done)
            expect("disk is full" in done.stderr, f"not said to be a full disk: {done.stderr.strip()[-300:]}")
            expect(done.code == 2, f"exit code {done.code}")
        make_space()
        completes(corpus, name, out)


def damaged_image(corpus: Corpus, folder: Path, random: random.Random) -> None:
    shutil.copytree(corpus.folder / "images", folder / "images")
    victim = random.choice(sorted((folder / "images").iterdir()))
    damage_file(victim, random)
    done = run("encode", corpus.folder / "train", folder / "images", "--out", folder / "vectors")
    well_said(done)
    expect(done.code == 0, f"{ROWS - 1} sound images beside a damaged one are refused: {done.stderr.strip()[-300:]}")
    ids, vectors = read_vectors(folder / "vectors")
    expect(bool(np.isfinite(vectors).all()), "vectors that are not finite")
    missing = {path.name for path in (folder / "images").iterdir()} - set(ids) - {victim.name}
    expect(not missing, f"sound images are missing: {sorted(missing)}")


def damaged_table(corpus: Corpus, folder: Path, random: random.Random) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [f"{random.choice(WORDS)} {random.choice(WORDS)} {row}" for row in range(40)]
    rows = [{"id": str(row), "text": text, "score": row / 2} for row, text in enumerate(texts)]
    path = folder / f"table.{random.choice(('csv', 'tsv', 'jsonl', 'json', 'parquet'))}"
    match path.suffix:
        case ".csv" | ".tsv":
            with path.open("w", newline="") as file:
                lines = csv.DictWriter(file, rows[0], delimiter="," if path.suffix == ".csv" else "\t")
                lines.writeheader()
                lines.writerows(rows)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            path.write_text(json.dumps(rows))
        case _:
            pq.write_table(pa.Table.from_pylist(rows), path)
    damage_file(path, random)
    well_said(run("encode", corpus.folder / "train", path, "--column", "text", "--out", folder / "vectors"))


def damaged_tar(corpus: Corpus, folder: Path, random: random.Random) -> None:
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for row, image in enumerate(sorted((corpus.folder / "images").iterdir())):
            caption = folder / "caption.txt"
            caption.write_text(f"{random.choice(WORDS)} {row}")
            shard.add(image, f"{row:03}{image.suffix}")
            shard.add(caption, f"{row:03}.txt")
    damage_file(folder / "shard.tar", random)
    well_said(run("data", "check", folder / "shard.tar"))


def damaged_config(corpus: Corpus, folder: Path, random: random.Random) -> None:
    config = folder / "config.yaml"
    shutil.copy(corpus.config, config)
    damage_file(config, random)
    well_said(run("config", "check", config))


def damaged_model(corpus: Corpus, folder: Path, random: random.Random) -> None:
    model = folder / "model"
    shutil.copytree(corpus.folder / "train" / "model", model)
    damage_file(some_file(model, random), random)
    texts = folder / "texts.txt"
    texts.write_text("\n".join(WORDS))
    table = folder / "texts.csv"
    table.write_text("text\n" + "\n".join(WORDS) + "\n")
    done = run("encode", model, table, "--column", "text", "--out", folder / "vectors")
    well_said(done)
    if done.code == 0:
        expect(bool(np.isfinite(read_vectors(folder / "vectors")[1]).all()), "vectors that are not finite")


def damaged_vectors(corpus: Corpus, folder: Path, random: random.Random) -> None:
    shutil.copytree(corpus.folder / "encode", folder / "vectors")
    damage_file(some_file(folder / "vectors", random), random)
    done = run("index", "build", folder / "vectors", "--out", folder / "index")
    well_said(done)
    if done.code == 0:
        same(corpus, "index", folder / "index")


def damaged_index(corpus: Corpus, folder: Path, random: random.Random) -> None:
    shutil.copytree(corpus.folder / "index", folder / "index")
    damage_file(some_file(folder / "index", random), random)
    search = ("search", folder / "index", *WORDS[:3], "--model", corpus.folder / "train", "--json")
    done = run(*search, folder / "found.json")
    well_said(done)
    if done.code == 0:
        sound = corpus.folder / "found.json"
        if not sound.exists():
            run("search", corpus.folder / "index", *search[2:], sound)
        found, wanted = json.loads((folder / "found.json").read_text()), json.loads(sound.read_text())
        expect(found == wanted, "other results without a word")


def damaged_run(corpus: Corpus, folder: Path, random: random.Random) -> None:
    begun = corpus.folder / "half-a-run"
    if not begun.exists():
        corpus.run("train", begun, cut=Cut(event=corpus.events["train"] * 2 // 3))
    out = folder / "run"
    shutil.copytree(begun, out)
    damage_file(some_file(out, random), random)
    done = corpus.run("train", out)
    well_said(done)
    if done.code == 0:
        same(corpus, "train", out)


def some_file(folder: Path, random: random.Random) -> Path:
    return random.choice(sorted(file for file in folder.rglob("*") if file.is_file() and file.stat().st_size))


def read_vectors(folder: Path) -> tuple[list[str], np.ndarray]:
    """Ids and vectors, read without mmcl."""
    import pyarrow.parquet as pq

    shards = sorted(folder.glob("*.npy"))
    ids = [str(id_) for shard in sorted(folder.glob("*.ids.parquet")) for id_ in pq.read_table(shard)["id"].to_pylist()]
    return ids, np.concatenate([np.load(shard) for shard in shards]) if shards else np.zeros((0, 1))


Trial = Callable[[Corpus, Path, random.Random], None]
CAMPAIGNS: dict[str, Trial] = {
    **{f"kill {name}": partial(kill, name) for name in COMMANDS},
    **{f"signal {name}": partial(interrupt, name) for name in ("train", "encode")},
    **{f"full disk {name}": partial(full_disk, name) for name in COMMANDS},
    "damaged image": damaged_image,
    "damaged table": damaged_table,
    "damaged tar shard": damaged_tar,
    "damaged config": damaged_config,
    "damaged model folder": damaged_model,
    "damaged vector folder": damaged_vectors,
    "damaged index folder": damaged_index,
    "damaged run folder": damaged_run,
}


def main() -> None:
    asked = _arguments()
    _warm_up()
    chosen = [asked.only] if asked.only else [name for name in CAMPAIGNS if may_mount() or not name.startswith("full")]
    share, more = divmod(asked.trials, len(chosen))
    rows, failures = [], []
    with tempfile.TemporaryDirectory(prefix="reliability-") as top:
        corpus = Corpus(Path(top))
        for place, name in enumerate(chosen):
            begin = time.perf_counter()
            trials = range(asked.first, asked.first + share + (place < more))
            wrong = [(trial, why) for trial in trials if (why := _try(name, trial, asked, corpus))]
            failures += [f"{name}, trial {trial}: {why}" for trial, why in wrong]
            passed = len(trials) - len(wrong)
            seconds = time.perf_counter() - begin
            rows.append({"campaign": name, "trials": len(trials), "passes": passed, "seconds": round(seconds, 1)})
            print(f"{name}: {passed} of {len(trials)}", file=sys.stderr, flush=True)
    rows.append({"campaign": "all", **{key: sum(row[key] for row in rows) for key in ("trials", "passes", "seconds")}})
    report(asked.json, rows, seed=asked.seed, failures=failures)
    print("\n".join(failures))
    if len(chosen) < len(CAMPAIGNS) and not asked.only:
        print("no trials of a full disk: this user may not mount a file system")
    sys.exit(bool(failures))


def _try(name: str, trial: int, asked: argparse.Namespace, corpus: Corpus) -> str | None:
    """Why a trial failed; None if it passed."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name.replace(' ', '-')}-{trial}-", dir=corpus.folder))
    try:
        CAMPAIGNS[name](corpus, folder, random.Random(f"{asked.seed}/{name}/{trial}"))
    except Failed as failed:
        if asked.keep:
            shutil.copytree(folder, asked.keep / folder.name, dirs_exist_ok=True)
        return str(failed)
    except Exception:
        return f"the trial itself: {traceback.format_exc()}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return None


def _warm_up() -> None:
    """Import once what every command would import in its process."""
    for name in IMPORTED:
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    sys.modules["faiss"].omp_set_num_threads(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=120, help="of all campaigns together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=CAMPAIGNS, help="one campaign")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, to repeat one that failed")
    parser.add_argument(
        "--json", type=Path, default=Path(__file__).with_suffix(".json"), help="where to write the counts"
    )
    parser.add_argument("--keep", type=Path, help="a folder for what failed trials leave")
    return parser.parse_args()


if __name__ == "__main__":
    main()
