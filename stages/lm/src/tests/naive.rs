//! The forward pass in f64, a token and a number at a time.

use super::tiny::{D_HEAD, D_MODEL, N_HEADS, N_KV_HEADS, N_LAYERS, RMS_EPS, ROPE_BASE, Tiny};
use crate::{Hook, Site};

type Rows = Vec<Vec<f64>>;

/// Runs one context. `edit` sees, and may change, the activation at every hook. Returns the hidden state after the
/// last norm.
pub(super) fn forward(tiny: &Tiny, tokens: &[u32], mut edit: impl FnMut(Hook, &mut Rows)) -> Rows {
    let weight = |name: &str| &tiny.weights[name][..];
    let embedding = weight("token_embd.weight");
    let mut x: Rows = tokens.iter().map(|&id| embedding[id as usize * D_MODEL..][..D_MODEL].to_vec()).collect();
    for block in 0..N_LAYERS {
        let part = |part: &str| weight(&format!("blk.{block}.{part}.weight"));
        edit(Hook { block, site: Site::ResidPre }, &mut x);

        let normed = norm(&x, part("attn_norm"));
        let mut out = attention(&normed, part("attn_q"), part("attn_k"), part("attn_v"), part("attn_output"));
        edit(Hook { block, site: Site::AttnOut }, &mut out);
        add(&mut x, &out);

        let normed = norm(&x, part("ffn_norm"));
        let mut out: Rows = normed
            .iter()
            .map(|x| {
                let (gate, up) = (times(part("ffn_gate"), x), times(part("ffn_up"), x));
                let gated: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                times(part("ffn_down"), &gated)
            })
            .collect();
        edit(Hook { block, site: Site::MlpOut }, &mut out);
        add(&mut x, &out);
        edit(Hook { block, site: Site::ResidPost }, &mut x);
    }
    norm(&x, weight("output_norm.weight"))
}

/// Logits of one row.
pub(super) fn unembed(tiny: &Tiny, hidden: &[f64]) -> Vec<f64> {
    times(&tiny.weights["token_embd.weight"], hidden)
}

fn attention(x: &Rows, q: &[f64], k: &[f64], v: &[f64], out: &[f64]) -> Rows {
    let mut rows = Vec::new();
    for at in 0..x.len() {
        let mut heads = Vec::new();
        for head in 0..N_HEADS {
            let kv_head = head / (N_HEADS / N_KV_HEADS);
            let project = |w: &[f64], head: usize, position: usize| {
                times(&w[head * D_HEAD * D_MODEL..(head + 1) * D_HEAD * D_MODEL], &x[position])
            };
            let query = rotate(&project(q, head, at), at);
            let scores: Vec<f64> = (0..=at)
                .map(|from| dot(&query, &rotate(&project(k, kv_head, from), from)) / (D_HEAD as f64).sqrt())
                .map(f64::exp)
                .collect();
            let total: f64 = scores.iter().sum();
            let mut mixed = vec![0.0; D_HEAD];
            for (from, score) in scores.iter().enumerate() {
                for (mixed, v) in mixed.iter_mut().zip(project(v, kv_head, from)) {
                    *mixed += score / total * v;
                }
            }
            heads.extend(mixed);
        }
        rows.push(times(out, &heads));
    }
    rows
}

fn rotate(x: &[f64], position: usize) -> Vec<f64> {
    let half = D_HEAD / 2;
    (0..D_HEAD)
        .map(|i| {
            let angle = position as f64 * f64::from(ROPE_BASE).powf(-2.0 * (i % half) as f64 / D_HEAD as f64);
            let partner = if i < half { -x[i + half] } else { x[i - half] };
            x[i] * angle.cos() + partner * angle.sin()
        })
        .collect()
}

fn norm(x: &Rows, gain: &[f64]) -> Rows {
    let row = |x: &Vec<f64>| {
        let scale = (dot(x, x) / x.len() as f64 + f64::from(RMS_EPS)).sqrt();
        x.iter().zip(gain).map(|(x, gain)| x / scale * gain).collect()
    };
    x.iter().map(row).collect()
}

/// w x, w [d_out, d_in].
fn times(w: &[f64], x: &[f64]) -> Vec<f64> {
    w.chunks_exact(x.len()).map(|row| dot(row, x)).collect()
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn add(x: &mut Rows, y: &Rows) {
    for (x, y) in x.iter_mut().zip(y) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}
