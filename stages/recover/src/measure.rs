//! A named value with its interval: what becomes a row of `recovery.parquet`.

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measure {
    pub(crate) metric: String,
    /// `all`, `coarse` or `fine`.
    pub(crate) level: &'static str,
    pub(crate) value: f64,
    /// 95 %, where there is one.
    pub(crate) interval: Option<(f64, f64)>,
}

impl Measure {
    pub(crate) fn new(metric: impl Into<String>, value: f64) -> Self {
        Self { metric: metric.into(), level: "all", value, interval: None }
    }

    pub(crate) fn at(self, level: &'static str) -> Self {
        Self { level, ..self }
    }

    pub(crate) fn within(self, interval: Option<(f64, f64)>) -> Self {
        Self { interval, ..self }
    }
}

/// Mean of some values; none of none.
pub(crate) fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut n) = (0.0, 0_u64);
    for value in values {
        sum += value;
        n += 1;
    }
    (n > 0).then(|| sum / n as f64)
}

/// A share of some things; none of none.
pub(crate) fn share(n: usize, of: usize) -> Option<f64> {
    (of > 0).then(|| n as f64 / of as f64)
}
