"""Projected cost of the paper's pretraining on GPUs: `python benchmarks/projection.py` writes docs/results/projection.md.

Nothing is measured here. Operations are counted by metapt/estimate/flops.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from metapt.config import PretrainConfig, commandline
from metapt.estimate.flops import flops_expected, parameter_count, tokens_of_step
from metapt.estimate.forecast import format_number
from metapt.estimate.speed import TFLOP

FILE = Path(__file__).parents[1] / "docs" / "results" / "projection.md"
PUBLISHED_HOURS = {"tiny": 10, "small": 15, "medium": 16, "large": 25}  # Africa et al. 2025, on 4 x A100-80GB
OBJECTIVES = {"maml_paper": "hybrid", "vanilla": "next-token only"}
MACHINES = {"4 x A100": 4 * 312, "8 x H100": 8 * 989}  # peak dense bf16 throughput, TFLOP/s
UTILISATIONS = (0.2, 0.4)

INTRODUCTION = """# Projected cost of the paper's pretraining on GPUs

`python benchmarks/projection.py` writes this page. **No GPU was measured.** It is arithmetic: the operations that `metapt/estimate/flops.py`
counts (a test compares them with torch's profiler), for the default configurations (`metapt pretrain model=SIZE objective=maml_paper|vanilla`: 6,000
updates), divided by an assumed fraction of the peak throughput (MFU, model FLOPs utilisation) of 20 % or 40 %. Peaks are those of dense bf16
products in NVIDIA's data sheets: A100-80GB SXM 312 TFLOP/s, H100 SXM 989 TFLOP/s (1,979 with sparsity). Evaluation, checkpoints and
communication are not included.
"""

CONCLUSION = """
- The authors' hours (10, 15, 16, 25) grow by a factor of 2.5 from `tiny` to `large`, the operations by {growth:.0f}. At `tiny` and `small`,
  something other than arithmetic limits an A100, and a projection from operations says little.
- At `large`, the authors' hours imply {hybrid:.0%} MFU for the hybrid run, and {vanilla:.0%} for a run of next-token updates only. The latter is
  more than the 56 % that Megatron-LM reports for its largest model ([arXiv 2205.05198](https://arxiv.org/abs/2205.05198)). It is therefore
  unlikely that 25 hours are those of 6,000 next-token updates of 2,048 sequences; in the authors' code, the baseline's configurations contain
  episodes as well.
- The authors' GPUs computed more than is counted here: their code runs the decoder again in each inner step and projects to all 50,304 classes.
- At `large`, an episode update has {episode:.1%} of the tokens of a next-token update: hybrid pretraining costs half as much as the baseline and
  processes half as many next-token tokens.
"""


def configuration(size: str, objective: str) -> PretrainConfig:
    """The default configuration of a model size."""
    return commandline.load("pretrain", [f"model={size}", f"objective={objective}"])


def hours_at(config: PretrainConfig, tflops: float, mfu: float) -> float:
    """Hours of all updates at a fraction of the peak throughput of all GPUs, without evaluation and checkpoints."""
    return config.train.max_steps * flops_expected(config) / (tflops * TFLOP * mfu) / 3600


def rows() -> Iterator[tuple[str, ...]]:
    """The cells of the table, the header first."""
    hours_columns = [f"{name}, {mfu:.0%} MFU: h" for name in MACHINES for mfu in UTILISATIONS]
    yield (
        *("model", "updates", "TFLOP per update", "6 N D / TFLOP", *hours_columns),
        *("authors, 4 x A100: h", "implied MFU"),
    )
    for size, published_hours in PUBLISHED_HOURS.items():
        for objective, name in OBJECTIVES.items():
            config = configuration(size, objective)
            projected = [
                format_number(hours_at(config, tflops, mfu))
                for tflops in MACHINES.values()
                for mfu in UTILISATIONS
            ]
            implied = hours_at(config, MACHINES["4 x A100"], 1) / published_hours
            flops = flops_expected(config)
            ratio = f"{six_n_d(config) / flops:.2f}" if objective == "vanilla" else ""
            yield (
                size,
                name,
                format_number(flops / TFLOP),
                ratio,
                *projected,
                str(published_hours),
                f"{implied:.1%}",
            )


def six_n_d(config: PretrainConfig) -> int:
    """Operations of a next-token update by the rule of thumb 6 x parameters x tokens (Kaplan et al. 2020, section 2.1)."""
    return 6 * parameter_count(config.model) * tokens_of_step(config, False)


def text() -> str:
    """The content of docs/results/projection.md."""
    header, *body = rows()
    table = [header, ("---", "---", *["---:"] * (len(header) - 2)), *body]
    large = {name: configuration("large", name) for name in OBJECTIVES}
    mfu = {name: hours_at(large[name], MACHINES["4 x A100"], 1) / PUBLISHED_HOURS["large"] for name in large}
    growth = flops_expected(large["maml_paper"]) / flops_expected(configuration("tiny", "maml_paper"))
    tokens = tokens_of_step(large["maml_paper"], True) / tokens_of_step(large["maml_paper"], False)
    conclusion = CONCLUSION.format(
        growth=growth, hybrid=mfu["maml_paper"], vanilla=mfu["vanilla"], episode=tokens
    )
    lines = [
        INTRODUCTION,
        *(f"| {' | '.join(row)} |" for row in table),
        conclusion.rstrip(),
        "",
        "6 N D includes the embedding, which is a table lookup, and omits attention scores; the ratio is therefore above 1.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(text())
