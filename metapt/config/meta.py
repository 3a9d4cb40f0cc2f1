"""Keys of the objective, and of episodes on windows of their own."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from metapt.config.keys import key
from metapt.config.registry import INITIAL_HEADS, TASKS, choices


@dataclass
class MetaConfig:
    """Episodes: how often an episode update replaces a next-token update, and what an episode is."""

    objective: str = key(
        MISSING,
        "training objective",
        choices={
            "vanilla": "next-token prediction only",
            "maml": "episodes with an inner loop, on the words of the batch or on masked windows",
            "maml_paper": "episodes on masked windows, as arXiv 2509.02160 describes them",
            "maml_authors": "the same as the authors' code mixes them",
            "episodes": "episodes on the words of the batch, as a weighted term",
            "twin": "the same without an inner loop",
            "multitask": "the word classes of these episodes as a plain auxiliary loss",
            "both": "episodes and multitask",
        },
        internal=True,
    )
    rho: float = key(
        0.0,
        "probability of episodes on masked windows in an update, or in a micro-batch with meta.mixing=per_micro_batch",
        low=0,
        high=1,
    )
    task: str = key("smlmt", "what these episodes are about", choices=choices(TASKS))
    mixing: str = key(
        "alternate",
        "how these episodes mix with next-token prediction",
        choices={
            "alternate": "an update consists of episodes or of next-token micro-batches",
            "per_micro_batch": "each micro-batch of an update is an episode or next-token prediction; their losses are averaged",
            "sum": "episodes come on top of next-token prediction, their mean loss times meta.weight",
        },
    )
    weight: float = key(
        1.0, "weight of the episodes relative to next-token prediction, with meta.mixing=sum", above=0
    )
    start_step: int = key(0, "number of updates at the start that are never episode updates", low=0)
    algorithm: str = key(
        "fomaml",
        "meta-learning algorithm",
        choices={
            "fomaml": "first-order MAML: the query gradient at the adapted parameters updates the initial ones",
            "meta_sgd": "first-order MAML with a learned inner learning rate for each adapted parameter",
            "reptile": "moves the initial parameters towards the adapted ones",
        },
    )
    scope: str = key(
        "head",
        "parameters that the inner loop adapts",
        choices={
            "head": "the episode head",
            "full": "the episode head and the decoder, except the decoder's output layer",
            "last_n": "the episode head, the last meta.last_n decoder blocks and the final norm",
        },
    )
    last_n: int = key(1, "number of decoder blocks that meta.scope=last_n adapts", low=1)
    n_way: int = key(32, "number of classes of an episode (N)", low=2)
    k_shot: int = key(4, "number of support windows per class (K)", low=1)
    q_query: int = key(4, "number of query windows per class (Q)", low=1)
    inner_steps: int = key(10, "number of SGD steps of the inner loop (T); 0: no adaptation", low=0)
    inner_lr: float | None = key(
        1e-3,
        "SGD learning rate of the inner loop",
        absent="meta.rate_scale * N / (T d) for N classes and hidden states of width d",
        above=0,
    )
    rate_scale: float = key(
        6.0, "factor of the inner learning rate where meta.inner_lr is not given", above=0
    )
    tasks_per_step: int = key(
        4,
        "number of episodes averaged in an update, over all ranks; not used with meta.mixing=per_micro_batch",
        low=1,
    )
    window: int = key(128, "length of a support or query window", unit="tokens", low=2)
    min_context: int = key(
        32,
        "minimum left context of the class token: an occurrence with fewer tokens of its window before it is not used",
        unit="tokens",
        low=0,
    )
    mask_fraction: float = key(
        0.3, "fraction of windows whose word is masked, with meta.task=word_classes", low=0, high=1
    )
    prediction_position: str = key(
        "mask",
        "position whose hidden state the episode head classifies",
        choices={
            "mask": "the last masked token of the window",
            "end": "the last token of the window, whose state also depends on what follows the masked token",
        },
    )
    min_windows: int = key(
        8, "number of windows in which a token must occur to be a class (at least k_shot + q_query)", low=1
    )
    max_window_fraction: float = key(
        0.05, "largest fraction of all windows in which a token may occur to be a class", above=0, high=1
    )
    index_tokens: int = key(
        100_000_000,
        "number of training tokens indexed for sampling episodes, evenly spread over the corpus",
        low=1,
    )
    initial_head: str = key(
        "learned",
        "classifier at the start of the inner loop. learned and persistent have meta.head_layers layers, all others one",
        choices=choices(INITIAL_HEADS),
    )
    normalize: bool = key(
        False, "centre hidden states on the mean support state and scale them to equal length"
    )
    head_hidden: int = key(128, "hidden width of the episode head", unit="dimensions", low=1)
    head_layers: int = key(4, "number of linear layers of the episode head", low=1)
    head_dropout: float = key(0.1, "dropout probability in the episode head", low=0, high=0.99)
    batch_sequences: int = key(
        4,
        "number of consecutive sequences of the batch whose words form a group, from which episodes are sampled",
        low=2,
    )

    @property
    def makes_head_anew(self) -> bool:
        """Whether each episode on windows makes its classifier from its support set, so that none is trained."""
        return self.initial_head not in ("learned", "persistent")
