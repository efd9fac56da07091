"""Rows that begin alike are read once: a tree of their prefixes, one forward pass for each level.

The contexts of a group say nearly the same, and K completions follow few of them:

    [system, problem] -> [peer 2] -> [peer 5] -> completions 1, 3, 4
                      |           -> [peer 7] -> completion 5
                      -> [peer 5] -> [peer 7] -> completion 2

A node's keys and values are copied to its children. Gradients flow back through the copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import DynamicCache

from rollout import cache_argument
from runtime.models import backbone, product_dtype

SHORTEST = 8  # tokens of a shared node: a pass for fewer costs more than it saves


@dataclass
class Node:
    """A piece of one or more prompts; parent: its number, always of the level before; or None."""

    tokens: Sequence[int]
    start: int  # position of its first token
    parent: int | None
    height: int = 0  # levels below it

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


def prefix_tree(prompts) -> tuple[list[Node], dict[tuple, int]]:
    """(nodes, in any order; {prompt: number of the leaf in which it ends}).

    prompts: tuples of token ids. Every prompt has a leaf of its own with its last token, whose
    state predicts the completion.
    """
    nodes, leaves = [], {}

    def add(tokens, start, parent):
        nodes.append(Node(tokens, start, parent))
        return len(nodes) - 1

    # (prompts that share tokens[:start], parent, start)
    waiting = [(sorted(set(prompts)), None, 0)]
    while waiting:
        group, parent, start = waiting.pop()
        if len(group) == 1:
            leaves[group[0]] = add(group[0][start:], start, parent)
            continue
        # Sorted: what the first and the last have in common all have. Each keeps its last token.
        end = min(common_length(group[0], group[-1]), min(map(len, group)) - 1)
        if end - start >= SHORTEST:
            parent, start = add(group[0][start:end], start, parent), end
        parts = {}  # a prompt that ends here has a leaf, even if a longer one goes on alike
        for prompt in group:
            ends_here = len(prompt) == end + 1
            parts.setdefault(prompt if ends_here else prompt[end], []).append(prompt)
        waiting += [(part, parent, start) for part in parts.values()]
    for node in reversed(nodes):  # children first
        if node.parent is not None:
            above = nodes[node.parent]
            above.height = max(above.height, node.height + 1)
    for n in range(len(nodes)):
        split_over_levels(nodes, n)
    return nodes, leaves


def split_over_levels(nodes: list[Node], n: int) -> None:
    """Where levels lie between a node and its parent, put pieces of the node there.

    One long piece would be read beside short ones that are padded to it.
    """
    node = nodes[n]
    gap = 0 if node.parent is None else nodes[node.parent].height - node.height - 1
    for missing in range(gap, 0, -1):
        cut = len(node.tokens) // (missing + 1)
        nodes.append(Node(node.tokens[:cut], node.start, node.parent, node.height + missing))
        node.tokens, node.start, node.parent = node.tokens[cut:], nodes[-1].end, len(nodes) - 1


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two prompts begin with alike."""
    differ = (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))


def tree_size(prompts) -> tuple[int, int]:
    """How many tokens of these prompts are read, each shared one once; and with padding."""
    lengths = {}
    for node in prefix_tree(map(tuple, prompts))[0]:
        lengths.setdefault(node.height, []).append(len(node.tokens))
    levels = lengths.values()
    return sum(map(sum, levels)), sum(len(level) * max(level) for level in levels)


def shared_hidden_states(model, prompts, completions) -> torch.Tensor:
    """`mopd.hidden_states`, (N, D), by the tree; for models that fast_scoring.can_share accepts.

    Equal completions of equal prompts are read once, too.
    """
    pairs = list(zip(map(tuple, prompts), map(tuple, completions), strict=True))
    distinct = {pair: n for n, pair in enumerate(dict.fromkeys(pairs))}
    nodes, leaves = prefix_tree(prompt for prompt, _ in distinct)
    reader = Reader(model)
    for height in range(max(node.height for node in nodes), -1, -1):
        level = {n: node for n, node in enumerate(nodes) if node.height == height}
        states = reader.read(level, level.values())
    # the last level holds the leaves; each one's last state predicts the completions' first tokens
    ends = torch.tensor([len(node.tokens) - 1 for node in level.values()], device=states.device)
    states = states[torch.arange(len(ends), device=states.device), ends]
    leaf_rows = [reader.row[leaves[prompt]] for prompt, _ in distinct]
    # index_select: the gradient of states[leaf_rows] is added up in an order that threads decide.
    states = states.index_select(0, torch.tensor(leaf_rows, device=states.device))[:, None]
    rows = [Node(completion[:-1], len(prompt), leaves[prompt]) for prompt, completion in distinct]
    if any(node.tokens for node in rows):
        states = torch.cat([states, reader.read(range(len(rows)), rows)], dim=1)
    of_row = states.unbind()
    return product_dtype(torch.cat([of_row[distinct[pair]][: len(pair[1])] for pair in pairs]))


class Reader:
    """Reads level after level.

    row: {number of a node: its row in the cache}. seen (rows, columns): which columns of the cache
    hold tokens of this row, the attention mask.
    """

    def __init__(self, model):
        # Without a config the cache makes layers as they come: HRM has more than its config says.
        self.model, self.cache = backbone(model), DynamicCache()
        self.row, self.seen = {}, None

    def read(self, numbers, nodes) -> torch.Tensor:
        """Go on from the parents, which were read last; returns states (nodes, width, D)."""
        device, width = self.model.device, max(1, *(len(node.tokens) for node in nodes))
        ids = [[*node.tokens, *[0] * (width - len(node.tokens))] for node in nodes]
        starts = torch.tensor([node.start for node in nodes], device=device)
        lengths = torch.tensor([len(node.tokens) for node in nodes], device=device)
        column = torch.arange(width, device=device)
        # Padding gets its row's last position: one beyond could exceed max_position_embeddings.
        last = (lengths - 1).clamp(min=0)
        options = {"position_ids": starts[:, None] + torch.minimum(column, last[:, None])}
        if self.row:
            # a root gets a copy of row 0, which its mask hides
            source = [self.row.get(node.parent, 0) for node in nodes]
            source = torch.tensor(source, device=device)
            self.cache.reorder_cache(source)
            begun = torch.tensor([node.parent is not None for node in nodes], device=device)
            self.seen = self.seen.index_select(0, source) & begun[:, None]
            new = torch.ones(len(ids), width, dtype=torch.bool, device=device)
            options["attention_mask"] = torch.cat([self.seen, new], dim=1)
        options[cache_argument(self.model)] = self.cache
        states = self.model(
            input_ids=torch.tensor(ids, device=device),
            use_cache=True,
            **options,
        ).last_hidden_state
        real = column < lengths[:, None]
        self.seen = real if self.seen is None else torch.cat([self.seen, real], dim=1)
        self.row = {number: row for row, number in enumerate(numbers)}
        return states
