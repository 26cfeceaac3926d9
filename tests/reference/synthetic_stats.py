"""Statistics of SAELens's own generator, for the tests of `stages/planted`.

    python tests/reference/synthetic_stats.py > stages/planted/src/tests/saelens.tsv

needs sae-lens 6.54, and takes a quarter of an hour on one core. Every statistic is the mean over worlds of several seeds,
with its standard deviation between them: what a world is made of is random too.
"""

import contextlib
import io
import os
import sys
import warnings

warnings.filterwarnings("ignore")
os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled")

import torch
from sae_lens.synthetic import (
    ActivationGenerator,
    FeatureDictionary,
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
    generate_hierarchy,
    orthogonal_initializer,
)
from sae_lens.synthetic.correlation import generate_random_low_rank_correlation_matrix
from sae_lens.synthetic.firing_probabilities import zipfian_firing_probabilities

N_ROWS = 65_536
SEEDS = range(6)
# Features without a parent that fire this often are paired.
FREQUENT = 0.03

SIZES = {"small": (1024, 160, 8), "half": (8192, 384, 64)}


def tight(size, seed):
    n, d, roots = SIZES[size]
    config = SyntheticModelConfig(
        num_features=n,
        hidden_dim=d,
        firing_probability=ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=5e-4),
        hierarchy=HierarchyConfig(
            total_root_nodes=roots,
            branching_factor=4,
            max_depth=3,
            mutually_exclusive_portion=1.0,
            compensate_probabilities=True,
            scale_children_by_parent=True,
        ),
        orthogonalization=OrthogonalizationConfig(num_steps=100, lr=3e-4),
        correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
        std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
        mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
        bias=0.5,
        seed=seed,
    )
    with contextlib.redirect_stderr(io.StringIO()):
        model = SyntheticModel(config)
    return model.activation_generator, model.feature_dict, model.hierarchy


def loose(size, seed):
    """Trees of depth 2, twice as many; children at .22 given their parent; shuffled magnitudes."""
    n, d, roots = SIZES[size]
    roots *= 2
    n_tree = roots * (1 + 4 + 16)
    config = HierarchyConfig(
        total_root_nodes=roots,
        branching_factor=4,
        max_depth=2,
        mutually_exclusive_portion=1.0,
        scale_children_by_parent=True,
    )
    hierarchy = generate_hierarchy(n, config, seed=seed)
    p = torch.cat(
        [
            zipfian_firing_probabilities(roots, 0.5, 0.4, 0.1),
            torch.full((n_tree - roots,), 0.22),
            zipfian_firing_probabilities(n - n_tree, 0.5, 0.1, 5e-4),
        ]
    )
    random = torch.Generator().manual_seed(seed)
    std = FoldedNormalMagnitudeConfig(mean=0.5, std=0.5).generate(n, seed=seed + 1)
    mean = torch.linspace(5, 4, n)[torch.randperm(n, generator=random)]
    correlation = generate_random_low_rank_correlation_matrix(n, 25, 0.1, seed=seed + 2)
    generator = ActivationGenerator(n, p, std, mean, hierarchy.modifier, correlation)
    dictionary = FeatureDictionary(
        n, d, bias=0.5, initializer=orthogonal_initializer(num_steps=100, lr=3e-4), seed=seed
    )
    return generator, dictionary, hierarchy


def families(hierarchy, n):
    """Level of each feature, -1 outside the trees, and the children of each parent."""
    level, children = torch.full((n,), -1), {}

    def walk(node, depth):
        level[node.feature_index] = depth
        if node.children:
            children[node.feature_index] = [child.feature_index for child in node.children]
        for child in node.children:
            walk(child, depth + 1)

    for root in hierarchy.roots:
        walk(root, 0)
    return level, children


@torch.no_grad()
def statistics(generator, dictionary, hierarchy):
    n = generator.num_features
    level, children = families(hierarchy, n)
    u = dictionary.feature_vectors
    n_on, sums = torch.zeros(n), torch.zeros(n)
    n_alone, siblings = torch.zeros(n), 0
    l0s, norms = [], []
    lone = torch.tensor([f for f in range(n) if level[f] < 1 and generator.firing_probabilities[f] >= FREQUENT])
    together = torch.zeros(len(lone), len(lone))
    for _ in range(N_ROWS // 2048):
        acts = generator.sample(2048)
        on = acts > 0
        n_on += on.sum(0)
        sums += acts.sum(0)
        for parent, of_parent in children.items():
            n_children = on[:, of_parent].sum(1)
            n_alone[parent] += (on[:, parent] & (n_children == 0)).sum()
            siblings += int((n_children > 1).sum())
        l0s.append(on.sum(1).float())
        norms.append(dictionary(acts).norm(dim=1))
        together += on[:, lone].float().T @ on[:, lone].float()
    l0, norm, rate = torch.cat(l0s), torch.cat(norms), n_on / N_ROWS
    found = {"l0": l0.mean(), "l0_std": l0.std(), "norm": norm.mean(), "norm_std": norm.std()}
    found["sibling_cofirings"] = torch.tensor(float(siblings))
    found["magnitude"] = sums.sum() / n_on.sum()
    parents = torch.zeros(n, dtype=torch.bool)
    parents[list(children)] = True
    for depth in range(-1, int(level.max()) + 1):
        name = "outside" if depth < 0 else f"level{depth}"
        here = level == depth
        for q in (0.1, 0.5, 0.9):
            found[f"{name}_rate_{q}"] = rate[here].quantile(q)
        found[f"{name}_magnitude"] = sums[here].sum() / n_on[here].sum()
        if parents[here].any():
            found[f"{name}_alone"] = n_alone[here].sum() / n_on[here].sum()
    a, b = torch.triu_indices(len(lone), len(lone), 1)
    both = together[a, b]
    first, second = n_on[lone[a]] - both, n_on[lone[b]] - both
    odds = ((both + 0.5) * (N_ROWS - both - first - second + 0.5) / ((first + 0.5) * (second + 0.5))).log()
    found["log_odds_std"] = odds.std()
    cosines = (u @ u.T).abs()
    found["largest_cosine"] = cosines.fill_diagonal_(0).max(1).values.mean()
    return {name: float(value) for name, value in found.items()}


def main():
    torch.set_num_threads(1)
    print("world\tstatistic\tmean\tstd")
    for size in sys.argv[1:] or ["small"]:
        for name, make in ((size, tight), (f"{size} loose", loose)):
            runs = []
            for seed in SEEDS:
                torch.manual_seed(1000 + seed)
                runs.append(statistics(*make(size, 100 * seed)))
            for statistic in runs[0]:
                values = torch.tensor([run[statistic] for run in runs], dtype=torch.float64)
                print(f"{name}\t{statistic}\t{values.mean():.6g}\t{values.std():.3g}", flush=True)


if __name__ == "__main__":
    main()
