//! Which features fire in a row, and how strongly.
//!
//! Feature i is drawn where a Gaussian z_i = f_i · ε + σ_i η_i exceeds the quantile of its probability, with factors
//! ε common to the row and f_i · f_i + σ_i² = 1. Then, level by level: a feature is off where its parent is, of siblings
//! that exclude each other a random one of those on stays, and a child's magnitude is multiplied by its parent's over the
//! mean of that. Features below a parent that is off need not be drawn at all, which leaves roots, features outside the
//! trees, and the children of what is on.

use rand::{Rng, RngExt};
use rand_distr::{Distribution, StandardNormal};
use slices::{Mat, Onto, multiply};
use statrs::function::erf::erfc_inv;

use crate::screen::{FAR, fires, screen};
use crate::world::Features;

/// Rows whose arguments are in the cache together.
const ROWS_AT_A_TIME: usize = 32;

/// Factors of a child are padded to whole vectors of as many.
const LANES: usize = 8;

/// The features that fire in some rows, ascending in each, with their magnitudes, which are positive.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Firing {
    /// Where the rows end.
    ends: Vec<u32>,
    features: Vec<u32>,
    magnitudes: Vec<f32>,
}

impl Firing {
    pub fn n_rows(&self) -> usize {
        self.ends.len()
    }

    /// Features and magnitudes.
    pub fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let start = if row == 0 { 0 } else { self.ends[row - 1] as usize };
        let places = start..self.ends[row] as usize;
        (&self.features[places.clone()], &self.magnitudes[places])
    }

    pub fn rows(&self) -> impl Iterator<Item = (&[u32], &[f32])> {
        (0..self.n_rows()).map(|row| self.row(row))
    }

    /// Leaves the first `n_rows` rows.
    pub fn truncate(&mut self, n_rows: usize) {
        self.ends.truncate(n_rows);
        let n = self.ends.last().map_or(0, |&end| end as usize);
        self.features.truncate(n);
        self.magnitudes.truncate(n);
    }

    fn push(&mut self, row: &[(u32, f32)]) {
        self.features.extend(row.iter().map(|&(feature, _)| feature));
        self.magnitudes.extend(row.iter().map(|&(_, magnitude)| magnitude));
        self.ends.push(self.features.len() as u32);
    }
}

/// The features as drawing wants them. The argument of feature i in a row is a_i = (quantile_i − f_i · ε) / σ_i, and it
/// is drawn with the probability of a standard normal number above that.
pub(crate) struct Draws {
    /// Features without a parent, ascending.
    always: Vec<u32>,
    /// Their arguments are (ε, 1) times this; [rank + 1, n_always], row-major.
    arguments: Vec<f32>,
    rank: usize,
    /// Children of feature i: those at `starts[i]..starts[i + 1]`.
    starts: Vec<u32>,
    children: Vec<Child>,
    /// −f_i / σ_i of each, in the same order, padded with zeros to whole vectors.
    child_factors: Vec<f32>,
    /// Mean and standard deviation of magnitudes, by feature.
    magnitudes: Vec<(f32, f32)>,
    exclude: Vec<bool>,
    /// By feature: the factor of its children's magnitudes per unit of its own; None where they are left as drawn.
    scale: Vec<Option<f32>>,
}

#[derive(Clone, Copy)]
struct Child {
    feature: u32,
    /// quantile / σ.
    threshold: f32,
}

impl Draws {
    pub(crate) fn new(features: &Features) -> Self {
        let (n, rank) = (features.parent.len(), features.rank);
        let always: Vec<u32> = (0..n as u32).filter(|&i| features.parent[i as usize].is_none()).collect();
        let mut arguments = vec![0f32; (rank + 1) * always.len()];
        for (place, &feature) in always.iter().enumerate() {
            let (factor, threshold) = argument(features, feature as usize);
            for (k, value) in factor.into_iter().chain([threshold]).enumerate() {
                arguments[k * always.len() + place] = value;
            }
        }
        let mut by_parent: Vec<(u32, u32)> =
            (0..n as u32).filter_map(|i| Some((features.parent[i as usize]?, i))).collect();
        by_parent.sort_unstable();
        let starts = (0..=n as u32).map(|i| by_parent.partition_point(|&(parent, _)| parent < i) as u32).collect();
        let (mut children, mut child_factors) = (Vec::new(), Vec::new());
        for (_, feature) in by_parent {
            let (factor, threshold) = argument(features, feature as usize);
            children.push(Child { feature, threshold });
            child_factors.extend(factor);
            child_factors.resize(children.len() * padded(rank), 0.0);
        }
        Self {
            always,
            arguments,
            rank,
            starts,
            children,
            child_factors,
            magnitudes: features.magnitude_mean.iter().copied().zip(features.magnitude_std.iter().copied()).collect(),
            exclude: features.children_exclude.clone(),
            scale: (0..n).map(|i| features.children_scale[i].then(|| 1.0 / features.magnitude_mean[i])).collect(),
        }
    }

    /// `n_rows` independent rows.
    pub(crate) fn draw(&self, rng: &mut impl Rng, n_rows: usize) -> Firing {
        let (n, k) = (self.always.len(), self.rank + 1);
        let mut arguments = vec![0f32; ROWS_AT_A_TIME * n];
        let mut first_bits = vec![0u8; ROWS_AT_A_TIME * n];
        let mut may_fire = vec![0u8; ROWS_AT_A_TIME * n];
        let mut factors = vec![0f32; ROWS_AT_A_TIME * k]; // (ε, 1), [rows, rank + 1]
        let mut firing = Firing::default();
        let (mut row, mut lone) = (Vec::new(), Vec::new());
        let mut padded_factors = vec![0f32; padded(self.rank)];
        for first in (0..n_rows).step_by(ROWS_AT_A_TIME) {
            let m = ROWS_AT_A_TIME.min(n_rows - first);
            for factors in factors.chunks_exact_mut(k) {
                factors[..self.rank].iter_mut().for_each(|value| *value = StandardNormal.sample(rng));
                factors[self.rank] = 1.0;
            }
            let weights = Mat::rows(&self.arguments, n);
            multiply((m, k, n), 1.0, Mat::rows(&factors, k), weights, Onto::Nothing, &mut arguments, n);
            rng.fill_bytes(&mut first_bits[..m * n]);
            screen(&arguments[..m * n], &first_bits[..m * n], &mut may_fire[..m * n]);
            for i in 0..m {
                let of_row = i * n..(i + 1) * n;
                padded_factors[..self.rank].copy_from_slice(&factors[i * k..i * k + self.rank]);
                row.clear();
                lone.clear();
                for_each_one(&may_fire[of_row.clone()], |place| {
                    let (a, bits) = (arguments[of_row.start + place], first_bits[of_row.start + place]);
                    let u = (f64::from(bits) + rng.random::<f64>()) / 256.0;
                    if fires(u, a) {
                        let feature = self.always[place];
                        let list = if self.has_children(feature) { &mut row } else { &mut lone };
                        list.extend(self.magnitude(feature, rng).map(|magnitude| (feature, magnitude)));
                    }
                });
                self.descend(&mut row, &padded_factors, rng);
                row.append(&mut lone);
                if !row.is_sorted_by_key(|&(feature, _)| feature) {
                    row.sort_unstable_by_key(|&(feature, _)| feature);
                }
                firing.push(&row);
            }
        }
        firing
    }

    /// Adds the children that fire under those in `row`, and theirs.
    fn descend(&self, row: &mut Vec<(u32, f32)>, factors: &[f32], rng: &mut impl Rng) {
        let mut next = 0;
        while let Some(&(parent, activation)) = row.get(next) {
            next += 1;
            let parent = parent as usize;
            let first = row.len();
            let scale = self.scale[parent].map_or(1.0, |per_unit| activation * per_unit);
            for place in self.starts[parent] as usize..self.starts[parent + 1] as usize {
                let Child { feature, threshold } = self.children[place];
                let width = factors.len();
                let a = threshold + dot(&self.child_factors[place * width..(place + 1) * width], factors);
                let normal: f32 = StandardNormal.sample(rng);
                if normal > a {
                    row.extend(self.magnitude(feature, rng).map(|magnitude| (feature, magnitude * scale)));
                }
            }
            if self.exclude[parent] && row.len() > first + 1 {
                let stays = row[rng.random_range(first..row.len())];
                row.truncate(first);
                row.push(stays);
            }
        }
    }

    /// None where it is cut at zero, which is as good as not firing.
    fn magnitude(&self, feature: u32, rng: &mut impl Rng) -> Option<f32> {
        let (mean, std) = self.magnitudes[feature as usize];
        let normal: f32 = StandardNormal.sample(rng);
        Some(mean + std * normal).filter(|&magnitude| magnitude > 0.0)
    }

    pub(crate) fn has_children(&self, feature: u32) -> bool {
        self.starts[feature as usize] < self.starts[feature as usize + 1]
    }
}

/// −f / σ and quantile / σ.
fn argument(features: &Features, feature: usize) -> (Vec<f32>, f32) {
    let rank = features.rank;
    let factor: Vec<f64> = features.factors[feature * rank..(feature + 1) * rank].iter().map(|&x| x.into()).collect();
    let own = (1.0 - factor.iter().map(|value| value * value).sum::<f64>()).max(f64::MIN_POSITIVE).sqrt();
    let p = f64::from(features.p_draw[feature]);
    let quantile = match p {
        p if p <= 0.0 => f64::INFINITY,
        p if p >= 1.0 => f64::NEG_INFINITY,
        p => std::f64::consts::SQRT_2 * erfc_inv(2.0 * p),
    };
    let threshold = (quantile / own).clamp(-f64::from(FAR), f64::from(FAR)) as f32;
    (factor.into_iter().map(|value| (-value / own) as f32).collect(), threshold)
}

fn padded(rank: usize) -> usize {
    rank.next_multiple_of(LANES)
}

/// Of whole vectors.
#[inline]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    for (x, y) in x.as_chunks::<LANES>().0.iter().zip(y.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * y[lane];
        }
    }
    sums.iter().sum()
}

/// Calls `at` with the places of the ones among zeros.
fn for_each_one(bytes: &[u8], mut at: impl FnMut(usize)) {
    let (words, rest) = bytes.as_chunks::<8>();
    for (i, word) in words.iter().enumerate() {
        let mut ones = u64::from_le_bytes(*word);
        while ones != 0 {
            at(8 * i + ones.trailing_zeros() as usize / 8);
            ones &= ones - 1;
        }
    }
    for (i, &byte) in rest.iter().enumerate() {
        if byte == 1 {
            at(8 * words.len() + i);
        }
    }
}
