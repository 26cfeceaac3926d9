//! Binary logistic regression with an L2 penalty.

/// Pairs of steps and gradient changes that L-BFGS keeps.
const N_PAIRS: usize = 10;
const MAX_STEPS: usize = 500;
/// The largest component of the gradient, relative to C · n, at which the search ends.
const TOLERANCE: f64 = 1e-7;

/// Features of some examples: row-major [n_rows, n_columns].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Features {
    pub(crate) n_columns: usize,
    pub(crate) values: Vec<f64>,
}

/// `row · weights + intercept` is the log-odds of the class.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Logistic {
    pub(crate) weights: Vec<f64>,
    pub(crate) intercept: f64,
}

/// Column means and standard deviations, of the rows a probe is trained on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scaling {
    mean: Vec<f64>,
    std: Vec<f64>,
}

impl Features {
    pub(crate) fn n_rows(&self) -> usize {
        self.values.len() / self.n_columns.max(1)
    }

    pub(crate) fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.n_columns..(i + 1) * self.n_columns]
    }

    pub(crate) fn select_rows(&self, rows: &[usize]) -> Self {
        let values = rows.iter().flat_map(|&i| self.row(i)).copied().collect();
        Self { n_columns: self.n_columns, values }
    }

    pub(crate) fn select_columns(&self, columns: &[usize]) -> Self {
        let values = (0..self.n_rows()).flat_map(|i| columns.iter().map(move |&j| self.row(i)[j])).collect();
        Self { n_columns: columns.len(), values }
    }
}

impl Scaling {
    pub(crate) fn of(features: &Features) -> Self {
        let n = features.n_rows().max(1) as f64;
        let mut mean = vec![0.0; features.n_columns];
        for i in 0..features.n_rows() {
            add_scaled(&mut mean, 1.0 / n, features.row(i));
        }
        let mut variance = vec![0.0; features.n_columns];
        for i in 0..features.n_rows() {
            for ((variance, mean), value) in variance.iter_mut().zip(&mean).zip(features.row(i)) {
                *variance += (value - mean).powi(2) / n;
            }
        }
        // A column that never varies says nothing; dividing by its deviation would make it NaN.
        let std = variance.iter().map(|&variance| if variance > 0.0 { variance.sqrt() } else { 1.0 }).collect();
        Self { mean, std }
    }

    pub(crate) fn apply(&self, features: &mut Features) {
        for row in features.values.chunks_exact_mut(features.n_columns.max(1)) {
            for ((value, mean), std) in row.iter_mut().zip(&self.mean).zip(&self.std) {
                *value = (*value - mean) / std;
            }
        }
    }
}

impl Logistic {
    pub(crate) fn zero(n_columns: usize) -> Self {
        Self { weights: vec![0.0; n_columns], intercept: 0.0 }
    }

    /// Minimises ½‖w‖² + c · Σ_i log(1 + exp(−y_i (x_i · w + b))), y_i = ±1, the intercept b unpenalised: the objective
    /// of scikit-learn's `LogisticRegression(C=c)`. It is convex, so `start` changes the time and not the result, up to
    /// the tolerance. Source: Nocedal and Wright, "Numerical Optimization", algorithms 7.4 and 7.5, with backtracking.
    ///
    /// Shapes: features [n, d], is_class [n], start [d].
    pub(crate) fn fit(features: &Features, is_class: &[bool], c: f64, start: Self) -> Self {
        let mut at: Vec<f64> = start.weights;
        at.push(start.intercept); // [d + 1], the intercept last
        let (mut loss, mut gradient) = objective(features, is_class, c, &at);
        let tolerance = TOLERANCE * c * is_class.len() as f64;
        let mut pairs: Vec<Pair> = Vec::new();
        for _ in 0..MAX_STEPS {
            if gradient.iter().all(|g| g.abs() <= tolerance) {
                break;
            }
            let mut direction = quasi_newton_direction(&pairs, &gradient);
            let mut slope = dot(&direction, &gradient);
            if slope >= 0.0 {
                pairs.clear();
                direction = gradient.iter().map(|g| -g).collect();
                slope = -dot(&gradient, &gradient);
            }
            // Without curvature yet, a step of the gradient's own length would be far too long.
            let mut step = if pairs.is_empty() { 1.0 / (1.0 + (-slope).sqrt()) } else { 1.0 };
            let advanced = loop {
                let next: Vec<f64> = at.iter().zip(&direction).map(|(x, d)| x + step * d).collect();
                let (next_loss, next_gradient) = objective(features, is_class, c, &next);
                if next_loss <= loss + 1e-4 * step * slope {
                    break Some((next, next_loss, next_gradient));
                }
                step *= 0.5;
                if step < 1e-12 {
                    break None;
                }
            };
            // No step lowers the loss any more in double precision: this is the minimum.
            let Some((next, next_loss, next_gradient)) = advanced else { break };
            let moved: Vec<f64> = next.iter().zip(&at).map(|(a, b)| a - b).collect();
            let turned: Vec<f64> = next_gradient.iter().zip(&gradient).map(|(a, b)| a - b).collect();
            let curvature = dot(&moved, &turned);
            if curvature > 1e-12 * dot(&turned, &turned) {
                if pairs.len() == N_PAIRS {
                    pairs.remove(0);
                }
                pairs.push(Pair { moved, turned, curvature });
            }
            (at, loss, gradient) = (next, next_loss, next_gradient);
        }
        let intercept = at.pop().unwrap_or_default();
        Self { weights: at, intercept }
    }

    pub(crate) fn log_odds(&self, row: &[f64]) -> f64 {
        dot(&self.weights, row) + self.intercept
    }
}

struct Pair {
    moved: Vec<f64>,
    turned: Vec<f64>,
    curvature: f64,
}

/// Loss and gradient at weights and intercept `at` [d + 1].
fn objective(features: &Features, is_class: &[bool], c: f64, at: &[f64]) -> (f64, Vec<f64>) {
    let (weights, intercept) = at.split_at(features.n_columns);
    let mut loss = 0.5 * dot(weights, weights);
    let mut gradient = at.to_vec();
    gradient[features.n_columns] = 0.0;
    for (i, &is_class) in is_class.iter().enumerate() {
        let row = features.row(i);
        let sign = if is_class { 1.0 } else { -1.0 };
        let margin = sign * (dot(weights, row) + intercept[0]);
        // log(1 + exp(−m)) without overflow.
        let small = (-margin.abs()).exp();
        loss += c * ((-margin).max(0.0) + small.ln_1p());
        let miss = if margin > 0.0 { small / (1.0 + small) } else { 1.0 / (1.0 + small) }; // 1 / (1 + exp(m))
        let pull = -c * sign * miss;
        add_scaled(&mut gradient[..features.n_columns], pull, row);
        gradient[features.n_columns] += pull;
    }
    (loss, gradient)
}

/// −H g, with the inverse Hessian H estimated from the pairs, the newest last.
fn quasi_newton_direction(pairs: &[Pair], gradient: &[f64]) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut shares = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        let share = dot(&pair.moved, &direction) / pair.curvature;
        add_scaled(&mut direction, -share, &pair.turned);
        shares.push(share);
    }
    if let Some(newest) = pairs.last() {
        let scale = newest.curvature / dot(&newest.turned, &newest.turned);
        direction.iter_mut().for_each(|d| *d *= scale);
    }
    for (pair, share) in pairs.iter().zip(shares.iter().rev()) {
        let back = dot(&pair.turned, &direction) / pair.curvature;
        add_scaled(&mut direction, share - back, &pair.moved);
    }
    direction
}

/// Eight partial sums, so that the compiler may use vector registers; their order is fixed.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_blocks, b_blocks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + rest
}

fn add_scaled(to: &mut [f64], scale: f64, from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += scale * from);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/probe_logistic.txt");
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn solutions_are_those_of_scikit_learn() {
        let golden = golden();
        let (mut features, mut is_class) = (Features { n_columns: 3, values: Vec::new() }, Vec::new());
        let (mut scaled, mut n_solutions) = (None, 0);
        for line in golden.lines() {
            let mut fields = line.split(' ');
            let kind = fields.next().unwrap();
            let numbers: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
            if kind == "row" {
                is_class.push(numbers[0] == 1.0);
                features.values.extend(&numbers[1..]);
            } else if kind == "solution" {
                let scaled = scaled.get_or_insert_with(|| {
                    let mut scaled = features.clone();
                    Scaling::of(&features).apply(&mut scaled);
                    scaled
                });
                let found = Logistic::fit(scaled, &is_class, numbers[0], Logistic::zero(3));
                let pairs = std::iter::once(&found.intercept).chain(&found.weights).zip(&numbers[1..]);
                for (found, expected) in pairs {
                    let difference = (found - expected).abs();
                    assert!(difference <= 1e-5, "C = {}: {found} and {expected}", numbers[0]);
                }
                n_solutions += 1;
            }
        }
        assert_eq!((features.n_rows(), n_solutions), (60, 4));
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let values = (0..40).map(|i| ((i * 37) % 11) as f64 / 5.0 - 1.0).collect();
        let features = Features { n_columns: 4, values };
        let is_class: Vec<bool> = (0..10).map(|i| i % 3 == 0).collect();
        let at = [0.3, -0.2, 0.5, 0.1, -0.4];
        let (_, gradient) = objective(&features, &is_class, 0.7, &at);
        for i in 0..at.len() {
            let shifted = |by: f64| {
                let mut at = at;
                at[i] += by;
                objective(&features, &is_class, 0.7, &at).0
            };
            let expected = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
            assert!((gradient[i] - expected).abs() <= 1e-8, "{i}: {} and {expected}", gradient[i]);
        }
    }

    #[test]
    fn the_start_does_not_matter() {
        let values = (0..300).map(|i| f64::from((i * i * 31 + i * 7) % 101) / 50.0 - 1.0).collect();
        let features = Features { n_columns: 6, values };
        let is_class: Vec<bool> = (0..50).map(|i| features.row(i)[2] + 0.3 * features.row(i)[4] > 0.1).collect();
        let cold = Logistic::fit(&features, &is_class, 0.5, Logistic::zero(6));
        let far = Logistic { weights: vec![3.0, -2.0, -5.0, 1.0, 4.0, 0.5], intercept: -3.0 };
        let warm = Logistic::fit(&features, &is_class, 0.5, far);
        for (a, b) in cold.weights.iter().zip(&warm.weights) {
            assert!((a - b).abs() <= 1e-4, "{a} and {b}");
        }
    }

    #[test]
    fn a_column_that_never_varies_stays_finite() {
        let features = Features { n_columns: 2, values: vec![1.0, 3.0, 2.0, 3.0, 4.0, 3.0] };
        let mut scaled = features.clone();
        Scaling::of(&features).apply(&mut scaled);
        assert!(scaled.values.iter().all(|value| value.is_finite()));
        assert_eq!(scaled.select_columns(&[1]).values, [0.0; 3]);
    }
}
