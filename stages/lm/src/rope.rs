//! Angles of the rotary position embedding (Su et al. 2021, "RoFormer", equations 15 and 34).

/// Cosines and sines of positions 0 to n − 1: angle(position, i) = position · base^(−2i / d_head).
#[derive(Debug)]
pub(crate) struct Rope {
    /// [n_positions, d_head / 2], both.
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

impl Rope {
    pub(crate) fn new(n_positions: usize, d_head: usize, base: f64) -> Self {
        let frequencies: Vec<f64> = (0..d_head / 2).map(|i| base.powf(-2.0 * i as f64 / d_head as f64)).collect();
        let angles = || (0..n_positions).flat_map(|position| frequencies.iter().map(move |f| position as f64 * f));
        Self { cos: angles().map(|a| a.cos() as f32).collect(), sin: angles().map(|a| a.sin() as f32).collect() }
    }
}

/// Undoes GGUF's arrangement of query and key rows. The converter writes each head's rotary pairs side by side
/// (rows 2i and 2i + 1); this crate, like the published weights, rotates rows i and i + d_head / 2.
/// Taking one for the other runs, and is wrong.
///
/// Shapes: rows [n_heads · d_head, d_in], in place of the same.
pub(crate) fn unpermute(rows: &[f32], d_head: usize, d_in: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(rows.len());
    for head in rows.chunks_exact(d_head * d_in) {
        for parity in 0..2 {
            for i in 0..d_head / 2 {
                let row = 2 * i + parity;
                out.extend_from_slice(&head[row * d_in..(row + 1) * d_in]);
            }
        }
    }
    out
}
