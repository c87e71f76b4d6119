"""mmcl eval: the metrics of a model."""

from __future__ import annotations

import typer

from mmcl.cli.evaluate.classification import few_shot, knn, linear_probe, zero_shot
from mmcl.cli.evaluate.compare import compare
from mmcl.cli.evaluate.diagnostics import diagnostics
from mmcl.cli.evaluate.hybrid import hybrid
from mmcl.cli.evaluate.recommendation import recommendation
from mmcl.cli.evaluate.retrieval import retrieval
from mmcl.cli.evaluate.sts import sts
from mmcl.cli.evaluate.threshold import threshold

app = typer.Typer(rich_markup_mode=None, help="Judge a model, or compare two.", no_args_is_help=True)
app.command(short_help="Find texts by image and images by text, or texts by text.")(retrieval)
app.command(short_help="Search by vectors, by words and by both, with learned weights.")(hybrid)
app.command(short_help="Recommend to users what they have not chosen yet.")(recommendation)
app.command(short_help="Semantic textual similarity, against people's scores.")(sts)
app.command("zero-shot")(zero_shot)
app.command(short_help="Classify images by their nearest training images.")(knn)
app.command("linear-probe", short_help="Classify images by logistic regression on their features.")(linear_probe)
app.command("few-shot", short_help="Classify images by 1% and 10% of the labels.")(few_shot)
app.command()(diagnostics)
app.command(short_help="From which cosine on two things match, at a stated precision.")(threshold)
app.command(short_help="Is B better than A, or luckier?")(compare)
