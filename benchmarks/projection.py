"""The paper's pretraining on GPUs, on paper: `python benchmarks/projection.py` writes docs/results/projection.md.

Nothing is measured here. Operations are those that metapt counts (metapt/estimate/flops.py), hours those of `metapt.plan`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from metapt.config import PretrainConfig, commandline
from metapt.estimate.flops import flops_expected, parameter_count, tokens_of_step
from metapt.estimate.forecast import TFLOP, Machine, format_number, hours, implied_mfu
from metapt.estimate.memory import Ranks

FILE = Path(__file__).parents[1] / "docs" / "results" / "projection.md"
PUBLISHED_HOURS = {"tiny": 10, "small": 15, "medium": 16, "large": 25}  # Africa et al. 2025, on 4 x A100-80GB
OBJECTIVES = {"maml": "hybrid", "vanilla": "next-token only"}
MACHINES = {  # peaks of dense products in bf16, TFLOP/s
    "4 x A100": Machine(Ranks(4, "cuda"), tflops=312),
    "8 x H100": Machine(Ranks(8, "cuda"), tflops=989),
}
UTILISATIONS = (0.2, 0.4)

INTRODUCTION = """# The paper's pretraining on GPUs, on paper

`python benchmarks/projection.py` writes this. **No GPU was measured.** It is arithmetic: operations as `metapt/estimate/flops.py` counts
them (a test compares its count with torch's profiler), for the configurations as they are shipped (`python -m metapt.pretrain model=SIZE
objective=maml|vanilla`: 6,000 updates), divided by a share of the peak (MFU, model FLOPs utilisation) that is assumed: 20 % and 40 %. Peaks are of
dense bf16 products, from NVIDIA's data sheets: A100-80GB SXM 312 TFLOP/s, H100 SXM 989 (1,979 with sparsity). Evaluation, checkpoints
and communication are left out.
"""

CONCLUSION = """
- The authors' hours (10, 15, 16, 25) grow by 2.5 from `tiny` to `large`, the operations by {growth:.0f}: at `tiny` and `small` an A100 waits for
  something other than its arithmetic, and a projection from operations says little there.
- At `large` their hours imply {hybrid:.0%} of the peak for the hybrid run, and {vanilla:.0%} for a run of next-token updates alone: more than
  the 56 % that Megatron-LM tells of its largest model ([arXiv 2205.05198](https://arxiv.org/abs/2205.05198)). So 25 hours are hardly those of 6,000
  next-token updates of 2,048 sequences; in the authors' code the configurations of the baseline have episodes, too.
- What their GPUs did is more than these shares: their code runs the decoder again at each inner step and projects to all 50,304 classes, which is
  not counted here.
- An episode update has {episode:.1%} of the tokens of a next-token update at `large`: hybrid pretraining costs half of the baseline, and sees half of
  its next-token data.
"""


def configuration(size: str, objective: str) -> PretrainConfig:
    """As shipped."""
    return commandline.load("pretrain", [f"model={size}", f"objective={objective}"])


def rows() -> Iterator[tuple[str, ...]]:
    """The cells of the table, the head first."""
    assumed = [f"{name}, {share:.0%}" for name in MACHINES for share in UTILISATIONS]
    yield (
        *("model", "updates", "TFLOP an update", "6 N D, share of it", *(f"{each}: h" for each in assumed)),
        *("authors, 4 x A100: h", "MFU that they imply"),
    )
    for size, taken in PUBLISHED_HOURS.items():
        for objective, name in OBJECTIVES.items():
            config = configuration(size, objective)
            told = [
                format_number(hours(config, Machine(machine.ranks, tflops=machine.tflops, mfu=share)) or 0)
                for machine in MACHINES.values()
                for share in UTILISATIONS
            ]
            implied = implied_mfu(config, MACHINES["4 x A100"], taken)
            rule = six_n_d(config) / flops_expected(config) if objective == "vanilla" else None
            share = "" if rule is None else f"{rule:.2f}"
            operations = format_number(flops_expected(config) / TFLOP)
            yield size, name, operations, share, *told, str(taken), f"{implied:.1%}"


def six_n_d(config: PretrainConfig) -> int:
    """Operations of a next-token update by the rule of thumb: 6 x parameters x tokens (Kaplan et al. 2020, section 2.1)."""
    return 6 * parameter_count(config.model) * tokens_of_step(config, False)


def text() -> str:
    """The whole file."""
    head, *body = rows()
    table = [head, ("---", "---", *["---:"] * (len(head) - 2)), *body]
    large = {name: configuration("large", name) for name in OBJECTIVES}
    shares = {
        name: implied_mfu(large[name], MACHINES["4 x A100"], PUBLISHED_HOURS["large"]) for name in large
    }
    growth = flops_expected(large["maml"]) / flops_expected(configuration("tiny", "maml"))
    tokens = tokens_of_step(large["maml"], True) / tokens_of_step(large["maml"], False)
    lines = [
        INTRODUCTION,
        *(f"| {' | '.join(row)} |" for row in table),
        CONCLUSION.format(
            growth=growth, hybrid=shares["maml"], vanilla=shares["vanilla"], episode=tokens
        ).rstrip(),
        "",
        "6 N D counts the embedding, which is looked up and not multiplied, and leaves out attention scores: hence a share above 1.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(text())
