"""Scores, comparisons and diagnostics as tables on stdout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from mmcl.cli.output import print_table, say

if TYPE_CHECKING:
    from mmcl.evaluation import Comparison, Diagnostics, FewShotScores, KnnScores, Scores, StsScores, ZeroShotScores
    from mmcl.evaluation.tasks.classification.scores import ClassificationScores


_CLASSES = 20  # shown of a zero-shot classification


def print_scores(scores: Mapping[str, Scores]) -> None:
    """One table a direction: the metrics, their intervals, what chance would give, and clip_benchmark's names."""
    for way, judged in scores.items():
        theirs = {f"hit@{name.partition('@')[2]}": name for name in judged.clip_benchmark}
        print_metrics(
            judged,
            theirs,
            f"{way}: {judged.queries:,} queries, {'run' if judged.of_run else 'corpus'} of {judged.corpus:,}",
        )
    print_what_counts(scores)


def print_what_counts(scores: Mapping[str, object]) -> None:
    """A line for queries that stand in their corpus, and one for queries with nothing to find, where there are such."""
    for way, judged in scores.items():
        if count := getattr(judged, "queries_in_corpus", 0):
            rule = {
                "drop": "each is left out of its own ranking, as in BEIR (--self-matches drop)",
                "keep": "each is ranked among its own answers (--self-matches keep; BEIR drops)",
            }[judged.self_matches]  # type: ignore[attr-defined]
            say(f"{way}: {count:,} queries stand in the corpus themselves; {rule}")
        if count := getattr(judged, "queries_without_relevant", 0):
            say(f"{way}: {count:,} queries have no relevant document, and score 0, as in trec_eval")


def print_diagnostics(found: Diagnostics) -> None:
    """The modalities side by side, what the best numbers would be, and the warnings."""
    spaces, between = found.spaces, found.between
    dim = next(iter(spaces.values())).dim
    measures = {
        "uniformity": f"lower; a uniform sphere has {-4 + 8 / dim:.2f}",
        "effective_rank": f"higher; at most {dim}",
        "random_cosine": "near 0",
        "top_component": f"lower; at least {1 / dim:.4f}",
        "dead_dimensions": "0",
        "alignment": "lower",
        "positive_cosine": "higher, far above random_cosine",
        "modality_gap": "lower",
    }
    columns = [*spaces.values(), *([between] if between else [])]
    names = [*spaces, *(["between"] if between else [])]
    rows = [
        [measure, *(getattr(column, measure, "") for column in columns), good] for measure, good in measures.items()
    ]
    rows = [row for row in rows if any(cell != "" for cell in row[1:-1])]
    size = ", ".join(f"{space.rows:,} {name}" for name, space in spaces.items())
    print_table(["measure", *names, "good is"], rows, title=f"{size} vectors of {dim} dimensions")
    for name, space in spaces.items():
        if space.uniformity_rows < space.rows:
            say(f"uniformity of {name}: all pairs of {space.uniformity_rows:,} rows drawn at random")
    for name, rank in (("RankMe", found.rank_me), ("LiDAR", found.lidar)):
        if rank is not None:
            say(f"{name}: {rank:.1f}; higher, at most {dim}")
    for reason in found.collapsed or ["no sign of collapse"]:
        say(f"warning: {reason}" if found.collapsed else reason)


def print_sts(scores: StsScores) -> None:
    """The table of the SimCSE paper: a column a task and the average, correlations × 100."""
    from mmcl.evaluation.tasks.sts import FEWEST

    tasks = scores.tasks
    columns = {task: f"{task}/" for task in tasks} | ({"average": ""} if len(tasks) > 1 else {})

    def line(name: str, values: list[float]) -> list[str]:
        return [name, *("–" if math.isnan(value) else f"{100 * value:.2f}" for value in values)]

    rows = [line("Spearman", [scores.metrics[f"{key}spearman"] for key in columns.values()])]
    for place, side in enumerate(("95% from", "95% to") if scores.intervals else ()):
        rows.append(line(side, [scores.intervals[f"{key}spearman"][place] for key in columns.values()]))
    rows.append(line("Pearson", [scores.metrics[f"{key}pearson"] for key in columns.values()]))
    pairs = [len(scores.scores[task]) for task in tasks]
    rows.append(["pairs", *(f"{count:,}" for count in [*pairs, sum(pairs)][: len(columns)])])
    print_table(["× 100", *columns], rows, title=f"correlation of {scores.similarity} similarity with people's scores")
    if few := [task for task, count in zip(tasks, pairs, strict=True) if scores.intervals and count < FEWEST]:
        say(f"fewer than {FEWEST} pairs give no interval (–): {', '.join(few)}")
    if undefined := [task for task in tasks if math.isnan(scores.metrics[f"{task}/spearman"])]:
        say(f"undefined (–), and so is the average: all similarities or all scores are equal in {', '.join(undefined)}")


def print_comparison(found: Comparison, a: str, b: str, *, of: str = "images") -> None:
    """A row a metric, and the verdict; ``of`` is what queries belong to that are not independent."""
    _print_differences(found, a, b, "metric", lambda value, sign: format(value, f"{sign}.4f"))
    sizes = sorted({(row.queries, row.groups) for row in found.differences.values()})
    compared = ", ".join(f"{q:,} queries" if q == g else f"{q:,} queries of {g:,} {of}" for q, g in sizes)
    _print_footing(compared, found)


def print_sts_comparison(found: Comparison, a: str, b: str) -> None:
    """A row a task, Spearman × 100, and the verdict."""
    _print_differences(found, a, b, "× 100", lambda value, sign: format(100 * value, f"{sign}.2f"))
    _print_footing(f"{max(row.queries for row in found.differences.values()):,} pairs", found)


def _print_differences(found: Comparison, a: str, b: str, what: str, show: Callable[[float, str], str]) -> None:
    parts: dict[str, list[list[object]]] = {}
    for name, row in found.differences.items():
        # A part such as image_to_text is a table: with it before each metric, no terminal of 80 columns is wide enough.
        part, _, metric = name.rpartition("/") if what == "metric" else ("", "", name)
        values: list[object] = [
            metric,
            show(row.a, ""),
            show(row.b, ""),
            show(row.difference, "+"),
            f"{show(row.low, '+')} – {show(row.high, '+')}",
            row.p,
            row.p_holm,
            {"a": "A", "b": "B", None: ""}[row.ahead],
        ]
        parts.setdefault(part, []).append(values)
    columns = [what, "A", "B", "B − A", "95% interval", "p", "p (Holm)", "ahead"]
    say(f"A: {a}", f"B: {b}", *[""] * any(parts))
    for part, rows in parts.items():
        print_table(columns, rows, title=part or None)
    say(found.verdict())


def _print_footing(compared: str, found: Comparison) -> None:
    say(f"paired over {compared}; {found.resamples:,} resamples; ahead: interval without 0 and p (Holm) < 0.05")


def print_classes(scores: ZeroShotScores) -> None:
    """The share of the largest class, and the accuracy of each class, or of the worst of many."""
    name, share = scores.largest_class
    say(f"always answering the largest class, {name}, would score top@1 {share:.4f}")
    sizes = scores.class_images
    worst = sorted(scores.per_class, key=lambda name: (scores.per_class[name], -sizes[name]))[:_CLASSES]
    title = None if len(worst) == len(sizes) else f"the worst {len(worst)} of {len(sizes):,} classes; --json has all"
    print_table(
        ["class", "images", "top@1"], [[name, sizes[name], scores.per_class[name]] for name in worst], title=title
    )


def print_knn(found: Sequence[KnnScores]) -> None:
    """A row a number of neighbours and temperature."""
    of = found[0]
    rows = [
        [
            scores.k,
            f"{scores.temperature:g}",
            *_with_interval(scores, "top@1"),
            *_with_interval(scores, "mean_per_class"),
        ]
        for scores in found
    ]
    columns = ["k", "τ", "top@1", "95% interval", "mean_per_class", "95% interval"]
    title = f"kNN: {of.size}, by the votes of {of.train:,} training images"
    print_table(columns, rows, title=title)
    print_not_offered(of)


def print_few_shot(found: Sequence[FewShotScores], how: str) -> None:
    """A row a share of the labels."""
    rows: list[list[object]] = []
    for scores in found:
        share, (low, high) = f"{100 * scores.fraction:g}%", scores.interval
        spread = scores.spread["top@1"] if len(scores.draws) > 1 else "–"
        accuracy = [scores.top1, spread, f"{low:.4f} – {high:.4f}", scores.metrics.get("top@5", "–")]
        rows.append([share, scores.train, *accuracy])
    columns = ["labels", "rows", "top@1", "± over draws", "95% interval", "top@5"]
    of = found[0]
    draws = f"mean of {len(of.draws)} draws" if len(of.draws) > 1 else "one draw"
    title = f"few-shot by {how}: {of.images:,} images, {of.classes:,} classes, {draws}"
    print_table(columns, rows, title=title)


def _with_interval(scores: ClassificationScores, metric: str) -> tuple[float, str]:
    low, high = scores.intervals[metric]
    return scores.metrics[metric], f"{low:.4f} – {high:.4f}"


def print_not_offered(scores: ClassificationScores) -> None:
    """A line for test images of classes that were not learned, where there are such."""
    if count := scores.not_offered:
        say(f"{count:,} of {scores.images:,} images are of classes without a training image, and count as wrong")


def print_metrics(judged: Scores | ClassificationScores, theirs: Mapping[str, str], title: str) -> None:
    """``theirs`` is what clip_benchmark calls a metric of ours; its number is shown where it differs."""
    chance, rows, of_clip_benchmark = judged.chance(), [], getattr(judged, "clip_benchmark", {})
    for name, value in judged.metrics.items():
        low, high = judged.intervals[name]
        same, other = theirs.get(name, ""), of_clip_benchmark.get(theirs.get(name, ""), value)
        named = same if f"{other:.4f}" == f"{value:.4f}" else f"{same} {other:.4f}"
        rows.append([name, value, f"{low:.4f} – {high:.4f}", chance.get(name, "–"), named])
    columns = ["metric", "value", "95% interval", "chance", "clip_benchmark"]
    shown = [0, 1, 2, *([3] if chance else []), *([4] if of_clip_benchmark else [])]
    print_table([columns[place] for place in shown], [[row[place] for place in shown] for row in rows], title=title)
