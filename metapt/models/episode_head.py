"""The heads that classify the examples of an episode on windows: trained ones, and one that is made anew in each episode."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import grad_and_value
from torch.nn.functional import cross_entropy, dropout, linear, relu

from metapt import randomness

EPSILON = 1e-4


def normalized_states(states: Tensor, mean: Tensor) -> Tensor:
    """Hidden states [..., d] centred on a mean and scaled to |h|^2 = d."""
    centred = states - mean
    return centred / (centred.square().mean(dim=-1, keepdim=True).sqrt() + EPSILON)


class EpisodeHead(nn.Module):
    """The MLP that classifies the examples of an episode: hidden states [..., d] to class logits [..., N].

    The paper's head has four linear layers, hidden width 128, dropout 0.1 and Xavier initialisation. The parameters
    belong to this module and not to submodules, because ZeRO 3 gathers the parameters of a module when it is called.

    Args:
        input_size: d.
        hidden_size: width of the hidden layers.
        classes: N.
        layers: number of linear layers.
        dropout: dropout probability after each hidden layer.
        seed: seed of the initial weights.
        per_class: whether each class of the task has an output of its own, the same in all episodes.
    """

    is_made_anew = False
    """Whether every episode makes its own weights, so that nothing is trained."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        classes: int,
        layers: int,
        dropout: float,
        seed: int,
        per_class: bool = False,
    ):
        super().__init__()
        sizes = [input_size, *[hidden_size] * (layers - 1), classes]
        self.num_layers, self.dropout, self.per_class = layers, dropout, per_class
        with randomness.torch_seed(seed, "episode head"):
            for index in range(layers):
                layer = nn.Linear(sizes[index], sizes[index + 1])
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
                for name, value in layer.named_parameters():
                    self.register_parameter(f"{name}{index}", value)

    def weights(self) -> dict[str, Tensor]:
        """The weights by name."""
        return dict(self.named_parameters())

    def forward(
        self,
        hidden: Tensor,
        substitute: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda own: own,
        columns: Tensor | None = None,
    ) -> Tensor:
        """Class logits.

        Args:
            hidden: [..., d].
            substitute: maps the module's weights, by name, to those that are used instead.
            columns: as in `logits`.
        """
        return self.logits(hidden, substitute(self.weights()), columns)

    def inner_step(
        self,
        parameters: Mapping[str, Tensor],
        hidden: Tensor,
        labels: Tensor,
        rate: float,
        columns: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """One inner step on the support set as a pure function, which can be compiled into one graph.

        Args:
            parameters: phi_t by name.
            hidden: support states [n, d].
            labels: [n].
            rate: the inner rate alpha.
            columns: as in `logits`.
        Returns: phi_{t+1} = phi_t - alpha * grad L_S(phi_t); L_S(phi_t) in nats; the logits [n, N] at phi_t.
        """

        def support_loss(values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            logits = self.logits(hidden, values, columns)
            return cross_entropy(logits, labels), logits

        gradients, (loss, logits) = grad_and_value(support_loss, has_aux=True)(parameters)
        updated = {name: value - rate * gradients[name] for name, value in parameters.items()}
        return updated, loss, logits

    def logits(
        self, hidden: Tensor, parameters: Mapping[str, Tensor], columns: Tensor | None = None
    ) -> Tensor:
        """Class logits with the given parameters in place of the module's, by the same names.

        Args:
            hidden: [..., d].
            columns: int64 [n], the outputs that are computed; None: all.
        """
        for index in range(self.num_layers):
            is_last = index == self.num_layers - 1
            weight, bias = parameters[f"weight{index}"], parameters[f"bias{index}"]
            if is_last and columns is not None:
                weight, bias = weight[columns], bias[columns]
            hidden = linear(hidden, weight, bias)
            if not is_last:
                hidden = dropout(relu(hidden), self.dropout, self.training)
        return hidden


class AnewHead(EpisodeHead):
    """A linear head whose weights each episode makes from its support set (metapt/meta/initial_heads.py).

    Its own are zeros and no parameters: they only have the names and the shape that an inner loop needs.

    Args:
        input_size: d; classes: N.
    """

    is_made_anew = True

    def __init__(self, input_size: int, classes: int):
        nn.Module.__init__(self)
        self.num_layers, self.dropout, self.per_class = 1, 0.0, False
        self.register_buffer("weight0", torch.zeros(classes, input_size), persistent=False)
        self.register_buffer("bias0", torch.zeros(classes), persistent=False)

    def weights(self) -> dict[str, Tensor]:
        return dict(self.named_buffers())
